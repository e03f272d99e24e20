//! A host's processes against the attestation service itself: what each dial of the machine costs,
//! and what an agent gains who measures events of its own.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::ChildStdout,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use clap::Parser;
use guarded_host_sim::{
    child::{Child, Output, Plan},
    client::{LabClient, NameTable},
    machine::{
        control::{Control, ask},
        dials::Dials,
    },
    swtpm::short_private_dir,
    tpm_channel::TpmChannel,
};
use hgs_protocol::{
    env::{Clock, OsRandom},
    tpm::command,
    wire::{
        boot_log::{BootLog, BootLogBuilder, PcrIndex},
        sipa::{Tag, id},
    },
};
use hgs_service::{
    settings::ServiceArgs,
    tokens::{Role, new_token},
};
use serde_json::{Value, json};

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    service: ServiceArgs,
    #[command(flatten)]
    options: attestation::Options,
}

/// The attestation service in this process, and one host in its own.
struct Lab {
    dir: PathBuf,
    admin: String,
    token: String,
    http: reqwest::Client,
    client: LabClient,
    agent: String,
    machine: Option<(Child, BufReader<ChildStdout>)>,
}

impl Lab {
    async fn new(test: &str, protocol: &str) -> Option<Lab> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = |name: &str| std::env::split_paths(&path).any(|d| d.join(name).exists());
        if !found("swtpm") || !found("swtpm_setup") || !found("setpriv") {
            eprintln!("SKIPPED {test}: swtpm, swtpm_setup or setpriv is not installed");
            return None;
        }
        let dir = short_private_dir().unwrap();
        let (token, line) = new_token(Role::Administrator, &mut OsRandom);
        fs::write(dir.join("tokens"), line).unwrap();
        fs::write(dir.join("kek"), hex::encode([7; 32])).unwrap();
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(dir.join("kek"), permissions).unwrap();
        let file = |name: &str| dir.join(name).display().to_string();
        let arguments = Arguments::parse_from([
            "attestation",
            "--listen=127.0.0.1:0",
            "--admin-listen=127.0.0.1:0",
            &format!("--data-dir={}", file("attestation")),
            &format!("--admin-tokens={}", file("tokens")),
            &format!("--key-encryption-key-file={}", file("kek")),
        ]);
        let settings = arguments.service.resolve("attestation").unwrap();
        let bound = attestation::start(&settings, &arguments.options, Clock::system())
            .await
            .unwrap();
        let ready = bound.ready_line("attestation");
        let value = |key: &str| {
            let word = ready.split(' ').find_map(|word| word.strip_prefix(key));
            word.unwrap().to_owned()
        };
        let (service, admin) = (value("service="), value("admin="));
        actix_web::rt::spawn(bound.run());
        let names = json!({ "hgs.bastion.local:80": [service.strip_prefix("http://").unwrap()] });
        fs::write(dir.join("names"), names.to_string()).unwrap();
        let mut lab = Lab {
            client: LabClient::new(NameTable::default(), None, Clock::system()).unwrap(),
            http: {
                let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
                reqwest::Client::new()
            },
            admin,
            token,
            agent: String::new(),
            machine: None,
            dir,
        };
        lab.start_machine(protocol);
        Some(lab)
    }

    fn start_machine(&mut self, protocol: &str) {
        let mut child = Plan::new(env!("CARGO_BIN_EXE_guarded-host-sim"), &self.dir)
            .args([
                "machine", "--name", "host01", "--dir", "host01", "--maker", "maker", "--",
            ])
            .args(["--attestation-url", "http://hgs.bastion.local/Attestation"])
            .args(["--protocol", protocol, "--names"])
            .arg(self.dir.join("names"))
            .output(Output::Pipe)
            .errors(Output::File(self.dir.join("machine.log")))
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.take_output().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let agent = line.trim().split("agent=").nth(1);
        self.agent = agent.unwrap_or_else(|| panic!("not ready: {line:?}")).to_owned();
        self.machine = Some((child, output));
    }

    fn host(&self, file: &str) -> PathBuf {
        self.dir.join("host01").join(file)
    }

    fn reboot(&self, dials: &Dials) {
        let order = Control::Reboot {
            dials: Some(Box::new(dials.clone())),
        };
        let reply = ask(&self.host("machine.sock"), &order).unwrap();
        assert!(reply.ok, "{}", reply.message);
    }

    async fn attest(&self) -> Value {
        let url = format!("{}/v1/attest", self.agent);
        let answer = self.client.post(&url, "application/json", Vec::new()).await.unwrap();
        serde_json::from_slice(&answer.body).unwrap()
    }

    async fn admin(&self, path: &str, body: Value) {
        let url = format!("{}/admin/v1/{path}", self.admin);
        let request = self.http.post(url).bearer_auth(&self.token).json(&body);
        let answer = request.send().await.unwrap();
        let status = answer.status();
        assert!(status.is_success(), "{path}: {status} {}", answer.text().await.unwrap());
    }

    async fn register_ek(&self) {
        let certificate = BASE64_STANDARD.encode(fs::read(self.host("agent/ek.cer")).unwrap());
        // The lab's TPM maker is trusted as a vendor is: root and intermediate.
        for (name, file) in [
            ("root", "swtpm-localca-rootca-cert.pem"),
            ("intermediate", "issuercert.pem"),
        ] {
            let der = pem(&self.dir.join("maker").join(file));
            let body = json!({ "name": name, "certificate": BASE64_STANDARD.encode(der) });
            self.admin("tpm-trust", body).await;
        }
        let body = json!({ "name": "host01", "ek_certificate": certificate });
        self.admin("tpm-hosts", body).await;
    }

    async fn register_baselines(&self) {
        for (path, file) in [("tpm-baselines", "boot.log"), ("ci-policies", "SIPolicy.p7b")] {
            let content = BASE64_STANDARD.encode(fs::read(self.host("agent").join(file)).unwrap());
            self.admin(path, json!({ "name": "model", "content": content })).await;
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.machine = None;
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn pem(path: &Path) -> Vec<u8> {
    let text = fs::read_to_string(path).unwrap();
    let body = text
        .split("-----BEGIN CERTIFICATE-----")
        .nth(1)
        .and_then(|t| t.split("-----END").next());
    BASE64_STANDARD
        .decode(body.unwrap().split_whitespace().collect::<String>())
        .unwrap()
}

#[actix_web::test]
async fn each_dial_fails_exactly_its_own_policies() {
    let Some(lab) = Lab::new("each_dial_fails_exactly_its_own_policies", "v2.0").await else {
        return;
    };
    assert_eq!(lab.attest().await["AttestationStatus"], "UnauthorizedHost");
    lab.register_ek().await;
    lab.register_baselines().await;
    let passed = lab.attest().await;
    assert_eq!(passed["AttestationStatus"], "Passed", "{passed}");
    assert!(passed["certificate"]["serial"].is_string());

    type Change = fn(&mut Dials);
    let cases: [(Change, &[&str], &str); 12] = [
        (
            |d| d.secure_boot = false,
            &["SecureBootEnabled", "SecureBootSettings"],
            "SecureBoot, SecureBootSettings",
        ),
        (|d| d.uefi_debug = true, &["DebugModeUefi"], "DebugMode"),
        (|d| d.hypervisor_debug = true, &["DebugModeUefi"], "DebugMode"),
        (|d| d.test_signing = true, &["DebugModeUefi"], "DebugMode"),
        (
            |d| d.ci_policy = Some(vec![1]),
            &["SystemIntegrityCiKnownGood"],
            "CodeIntegrityPolicy",
        ),
        (
            |d| d.hvci = false,
            &["HypervisorEnforcedCiPolicy"],
            "HypervisorEnforcedCodeIntegrityPolicy",
        ),
        (|d| d.iommu = false, &["IommuEnabled"], "Iommu"),
        (
            |d| d.vsm = false,
            &[
                "VsmIdkPresent",
                "VsmRunning",
                "IommuEnabled",
                "HypervisorEnforcedCiPolicy",
            ],
            "VirtualSecureMode, Iommu, HypervisorEnforcedCodeIntegrityPolicy",
        ),
        (
            |d| d.pagefile_encryption = false,
            &["PagefileEncryptionEnabled"],
            "PagefileEncryption",
        ),
        (
            |d| d.hibernation_disabled = false,
            &["NoHibernation"],
            "HibernationEnabled",
        ),
        (
            |d| (d.dumps_disabled, d.dump_encryption) = (false, true),
            &["NoDumps", "DumpEncryptionKey"],
            "DumpsEnabled, DumpEncryptionKey",
        ),
        (|d| d.full_boot = false, &["FullBoot"], "FullBoot"),
    ];
    for (change, policies, substatus) in cases {
        let mut dials = Dials::default();
        change(&mut dials);
        lab.reboot(&dials);
        let refused = lab.attest().await;
        assert_eq!(refused["error"], "PolicyEvaluationErrorReply", "{refused}");
        assert_eq!(refused["failed_policies"], json!(policies), "{refused}");
        assert_eq!(refused["AttestationSubstatus"], substatus);
        assert_eq!(refused["certificate"], Value::Null);
    }
    lab.reboot(&Dials::default());
    assert_eq!(lab.attest().await["AttestationStatus"], "Passed");
}

#[actix_web::test]
async fn an_agent_that_measures_after_the_boot_is_refused() {
    let Some(lab) = Lab::new("an_agent_that_measures_after_the_boot_is_refused", "v1.0").await else {
        return;
    };
    lab.register_ek().await;
    lab.register_baselines().await;
    assert_eq!(lab.attest().await["AttestationStatus"], "Passed");

    // The agent puts another policy into its log and into the TPM, after the cap.
    let log = fs::read(lab.host("agent/boot.log")).unwrap();
    let mut forged = BootLogBuilder::new(3);
    let pcr = PcrIndex::new(12).unwrap();
    let digest = forged.tagged(pcr, [Tag::boolean(id::OSKERNELDEBUG, false)]);
    let extend = command::pcr_extend(12, &digest);
    let mut tpm = TpmChannel::connect(&lab.host("run/tpm-agent"), "host01").unwrap();
    tpm.call_with_empty_password(&extend).unwrap();
    let refused = lab.attest().await;
    assert_eq!(
        refused["error"], "TcgLogValidationErrorReply",
        "without the event in the log"
    );
    assert_eq!(refused["AttestationSubstatus"], "TcgLogVerification");

    let bytes = forged.finish();
    let record = BootLog::parse(&bytes).unwrap().events().last().unwrap().offset;
    fs::write(lab.host("agent/boot.log"), [log.as_slice(), &bytes[record..]].concat()).unwrap();
    let refused = lab.attest().await;
    assert_eq!(
        refused["error"], "TcgLogValidationErrorReply",
        "with the event in the log"
    );

    // Only a power cycle cleans the TPM, and that one measures the truth.
    lab.reboot(&Dials::default());
    assert_eq!(lab.attest().await["AttestationStatus"], "Passed");
}
