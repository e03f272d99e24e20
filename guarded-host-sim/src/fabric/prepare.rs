//! `prepare`: makes what a fabric in containers needs before its parts start: keys, tokens and
//! certificates of the services, the TPM maker, the name table, and the description with which the
//! demonstration attaches. Each service finds only its own folder. Does nothing once all is there, and
//! can be repeated when an attempt was cut short.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::Context;
use hgs_protocol::{env::OsRandom, secret::Secret32};
use hgs_service::tokens::{Role, new_token};

use super::{
    ATTESTATION, Elsewhere, HostElsewhere, KEY_PROTECTION, found_tpm_maker,
    service::{Attachment, write_private},
    tls,
};
use crate::client::NameTable;

/// Where everything goes, and at which addresses the parts will answer.
#[derive(Clone, Debug, clap::Args)]
pub struct PrepareArgs {
    /// Folder of the attestation service
    #[arg(long)]
    pub attestation: PathBuf,
    /// Folder of the key protection service
    #[arg(long)]
    pub kps: PathBuf,
    /// Folder of the administrator who tells the story: `fabric.json` with the tokens
    #[arg(long)]
    pub lab: PathBuf,
    /// Folder that every host reads: name table and TPM maker
    #[arg(long)]
    pub shared: PathBuf,
    /// Folder of the sockets over which the lab moves clocks
    #[arg(long)]
    pub clocks: PathBuf,
    /// Folder below which each host keeps everything
    #[arg(long)]
    pub hosts: PathBuf,
    /// The hosts' shared volume
    #[arg(long)]
    pub volume: PathBuf,
    /// Address of the attestation service
    #[arg(long)]
    pub attestation_address: IpAddr,
    /// Address of the key protection service
    #[arg(long)]
    pub kps_address: IpAddr,
    /// A host and its address, `host01=10.0.0.21`; may be repeated
    #[arg(long = "host", value_parser = named_address)]
    pub host: Vec<(String, IpAddr)>,
}

/// Makes it all.
pub fn run(args: &PrepareArgs) -> anyhow::Result<()> {
    let description = args.lab.join("fabric.json");
    if description.exists() {
        return Ok(());
    }
    let elsewhere = Elsewhere {
        attestation: service(args, "attestation", &args.attestation, args.attestation_address)?,
        kps: service(args, "kps", &args.kps, args.kps_address)?,
        hosts: args
            .host
            .iter()
            .map(|(name, address)| host(args, name, *address))
            .collect(),
        volume: args.volume.clone(),
        tpm_maker: args.shared.join("tpm-maker"),
    };
    found_tpm_maker(&elsewhere.tpm_maker, &args.shared.join("first-tpm"))?;
    let mut names = NameTable::default();
    for (name, address) in [
        (ATTESTATION, args.attestation_address),
        (KEY_PROTECTION, args.kps_address),
    ] {
        names
            .0
            .insert(format!("{name}:80"), vec![SocketAddr::new(address, SERVICE)]);
    }
    fs::write(args.shared.join("names.json"), serde_json::to_vec_pretty(&names)?)?;
    // Written last: its presence says that all is there.
    write_private(&description, &serde_json::to_string_pretty(&elsewhere)?)?;
    println!("the fabric is prepared: {}", description.display());
    Ok(())
}

fn service(args: &PrepareArgs, name: &str, folder: &Path, address: IpAddr) -> anyhow::Result<Attachment> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let rng = &mut OsRandom;
    let key = folder.join("key-encryption-key");
    // An attempt that was cut short may have left files. A key-encryption key is never replaced: something may be
    // sealed under it already.
    if !key.exists() {
        write_private(&key, &hex::encode(Secret32::random(rng).expose()))?;
    }
    let (token, line) = new_token(Role::Administrator, rng);
    let tokens = folder.join("admin-tokens");
    fs::write(&tokens, line + "\n")?;
    let _ = fs::remove_dir_all(folder.join("tls"));
    let tls = tls::issue(&folder.join("tls"), &[name, &address.to_string()])?;
    let root = args.lab.join(format!("{name}-root.pem"));
    fs::copy(&tls.root, &root).with_context(|| format!("cannot write {}", root.display()))?;
    let clock = args.clocks.join(name);
    let path = |path: &Path| path.display().to_string();
    let settings: BTreeMap<&str, String> = BTreeMap::from([
        ("listen", format!("0.0.0.0:{SERVICE}")),
        ("admin-listen", format!("0.0.0.0:{ADMIN}")),
        ("tls-certificate", path(&tls.certificate)),
        ("tls-key", path(&tls.key)),
        ("data-dir", path(&folder.join("data"))),
        ("key-encryption-key-file", path(&key)),
        ("admin-tokens", path(&tokens)),
        ("lab-clock", path(&clock)),
    ]);
    let lines: Vec<String> = settings
        .iter()
        .map(|(key, value)| format!("{key} = {value:?}\n"))
        .collect();
    fs::write(folder.join("service.toml"), lines.concat())?;
    Ok(Attachment {
        url: format!("http://{}", SocketAddr::new(address, SERVICE)),
        admin_url: format!("https://{}", SocketAddr::new(address, ADMIN)),
        token,
        root,
        clock,
    })
}

fn host(args: &PrepareArgs, name: &str, address: IpAddr) -> (String, HostElsewhere) {
    let host = HostElsewhere {
        folder: args.hosts.join(name),
        agent_url: format!("http://{}", SocketAddr::new(address, AGENT)),
    };
    (name.to_owned(), host)
}

fn named_address(text: &str) -> Result<(String, IpAddr), String> {
    let (name, address) = text.split_once('=').ok_or("say NAME=ADDRESS")?;
    Ok((
        name.to_owned(),
        address.parse().map_err(|_| format!("{address} is no IP address"))?,
    ))
}

const SERVICE: u16 = 8080;
const ADMIN: u16 = 8444;
const AGENT: u16 = 8700;

#[cfg(test)]
mod tests {
    use super::*;

    fn args(folder: &Path) -> PrepareArgs {
        let path = |name: &str| folder.join(name);
        for name in ["lab", "shared", "clocks"] {
            fs::create_dir_all(path(name)).unwrap();
        }
        PrepareArgs {
            attestation: path("attestation"),
            kps: path("kps"),
            lab: path("lab"),
            shared: path("shared"),
            clocks: path("clocks"),
            hosts: path("hosts"),
            volume: path("volume"),
            attestation_address: [10, 0, 0, 11].into(),
            kps_address: [10, 0, 0, 12].into(),
            host: vec![named_address("host01=10.0.0.21").unwrap()],
        }
    }

    #[test]
    fn an_attempt_that_was_cut_short_is_repeated_and_keeps_the_key_encryption_key() {
        let folder = tempfile::tempdir().unwrap();
        let args = args(folder.path());
        let first = service(&args, "kps", &args.kps, args.kps_address).unwrap();
        let key = fs::read(args.kps.join("key-encryption-key")).unwrap();
        let again = service(&args, "kps", &args.kps, args.kps_address).unwrap();
        assert_eq!(fs::read(args.kps.join("key-encryption-key")).unwrap(), key);
        assert_ne!(first.token, again.token);
        assert_eq!(again.admin_url, "https://10.0.0.12:8444");
    }

    #[test]
    fn a_host_without_an_address_is_refused() {
        assert!(named_address("host01").is_err());
        assert!(named_address("host01=here").is_err());
    }
}
