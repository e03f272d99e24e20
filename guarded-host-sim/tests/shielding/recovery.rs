//! An owner whose fabric, or whose VM's vTPM, is lost, and a guest that boots in another configuration.

use std::{fs, path::PathBuf};

use super::{
    provision::{PASSWORD, Scene, every_file, id},
    *,
};

impl Scene {
    /// The recovery password of the VM `web`, in a file of the desk.
    fn write_recovery_key(&self, file: &str) -> String {
        let _ = fs::remove_file(self.desk.join(file));
        let volume = self.stage.volume_path.display();
        good(
            &self.desk,
            &format!("vm recovery-key web --volume {volume} --shielding-data x.pdk --open-with Owner --out {file}"),
        );
        let text = fs::read_to_string(self.desk.join(file)).unwrap();
        text.trim().to_owned()
    }

    fn disk(&self, name: &str) -> PathBuf {
        let folder = self.stage.volume.vm(&name.parse().unwrap()).unwrap();
        folder.disk_path(&folder.current().unwrap())
    }

    fn state_file(&self) -> PathBuf {
        let folder = self.stage.volume.vm(&"web".parse().unwrap()).unwrap();
        let generation = String::from(folder.current().unwrap().generation);
        folder
            .path()
            .join("generations")
            .join(generation)
            .join("guest-state.bin")
    }
}

const PROVISION: &str =
    "provision web --shielding-data x.pdk --template library/server.img --value ComputerName=web-01";

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_reaches_the_disk_without_the_fabric() {
    let mut scene = Scene::set(&[]).await;
    let desk = scene.desk.clone();
    let desk = desk.as_path();
    scene.data("x.pdk", "HGS", "shielded");
    scene.data("other.pdk", "HGS", "shielded");
    scene.good_vm(PROVISION);
    scene.good_vm("start web");
    let volume = scene.stage.volume_path.display().to_string();

    // The password is shown to the owner, also while the VM runs, and to nobody else.
    let key = scene.write_recovery_key("recovery.txt");
    let groups: Vec<u32> = key.split('-').map(|group| group.parse().unwrap()).collect();
    assert!(key.len() == 55 && groups.len() == 8 && groups.iter().all(|group| group % 11 == 0));
    good(desk, "guardian create Other --p256");
    let show = |words: &str| format!("vm recovery-key --disk {} {words}", scene.disk("web").display());
    let shown = good(desk, &show("--shielding-data x.pdk --open-with Owner"));
    assert_eq!(shown.as_str().unwrap().trim(), key);
    refused(
        desk,
        &show("--shielding-data x.pdk --open-with Other"),
        &["no wrapping of the key protector is for this guardian"],
    );
    refused(
        desk,
        &show("--shielding-data other.pdk --open-with Owner"),
        &["made with another shielding data file"],
    );
    refused(
        desk,
        &format!("vm recover web --volume {volume} --open-with Owner --out lost"),
        &["the disk is in use"],
    );
    scene.good_vm("stop web");
    let disk = scene.disk("web");

    // Everything of the fabric is gone but the volume.
    scene.host.kill().unwrap();
    refused(
        desk,
        &format!("vm recover web --volume {volume} --open-with Other --out lost"),
        &["no wrapping of the key protector is for this guardian"],
    );
    good(
        desk,
        &format!("vm recover web --volume {volume} --open-with Owner --out one"),
    );
    // And then but the disk.
    let saved = desk.join("disk.bin");
    fs::copy(&disk, &saved).unwrap();
    fs::remove_dir_all(scene.stage.volume_path.join("web")).unwrap();
    let by_password = "vm recover --disk disk.bin --recovery-password-file recovery.txt --out two";
    good(desk, by_password);
    refused(desk, by_password, &["cannot write two"]);
    let template = fs::read(desk.join("server.img")).unwrap();
    for folder in ["one", "two"] {
        let folder = desk.join(folder);
        assert_eq!(fs::read(folder.join("volume.img")).unwrap(), template[..300_000]);
        let answer = fs::read_to_string(folder.join("files/unattend.xml")).unwrap();
        assert!(answer.contains("web-01") && answer.contains(PASSWORD));
        assert_eq!(
            fs::read(folder.join("files/rdp.pfx")).unwrap(),
            fs::read(desk.join("rdp.pfx")).unwrap()
        );
    }

    // A VM that its owner made without shielding data has one that the owner wrote down.
    let payroll = scene.disk("payroll").display().to_string();
    let text = scene.stage.vm.recovery_password().expose_text();
    fs::write(desk.join("payroll.txt"), text.as_bytes()).unwrap();
    refused(
        desk,
        &format!("vm recover --disk {payroll} --recovery-password-file recovery.txt --out three"),
        &["another disk's"],
    );
    let words = "--recovery-password-file payroll.txt --out three";
    good(desk, &format!("vm recover payroll --volume {volume} {words}"));
    assert_eq!(
        fs::read_to_string(desk.join("three/secret")).unwrap(),
        scene.stage.secret
    );
    refused(
        desk,
        &format!("vm recovery-key --disk {payroll} --shielding-data x.pdk --open-with Owner"),
        &["is not kept on the disk"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_whose_state_is_lost_is_built_anew_around_its_disk() {
    let scene = Scene::set(&[]).await;
    let desk = scene.desk.as_path();
    scene.data("x.pdk", "HGS", "shielded");
    let made = scene.good_vm(PROVISION);
    good(desk, "guardian create Other --p256");
    let key = scene.write_recovery_key("recovery.txt");
    let mut mistyped = key.clone().into_bytes();
    mistyped[16] = b'0' + (mistyped[16] - b'0' + 1) % 10;
    fs::write(desk.join("mistyped.txt"), mistyped).unwrap();
    let other = guarded_host_sim::vm::recovery::RecoveryPassword::random(&mut hgs_protocol::env::OsRandom);
    fs::write(desk.join("another.txt"), other.expose_text().as_bytes()).unwrap();
    let rebuild = |owner: &str, password: &str| {
        format!(
            "vm rebuild web --volume {} --recovery-password-file {password} --owner {owner} --guardian HGS \
             --allow-untrusted-root",
            scene.stage.volume_path.display()
        )
    };

    scene.good_vm("start web");
    refused(desk, &rebuild("Owner", "recovery.txt"), &["the disk is in use"]);
    scene.good_vm("stop web");
    refused(
        desk,
        &rebuild("Owner", "mistyped.txt"),
        &["group 3 of the recovery password is mistyped"],
    );
    refused(desk, &rebuild("Owner", "another.txt"), &["another disk's"]);
    refused(
        desk,
        &rebuild("Other", "recovery.txt"),
        &["belongs to the owner of the signing certificate"],
    );
    scene.good_vm("start web");
    scene.good_vm("stop web");

    for (round, point) in [None, Some("rebuild:written"), Some("rebuild:committed")]
        .into_iter()
        .enumerate()
    {
        fs::write(scene.state_file(), b"nothing that opens").unwrap();
        scene.refused_vm("start web", &["no guest state"]);
        // The fabric cannot type the password either: it would see it.
        let words = rebuild("Owner", "recovery.txt");
        match point {
            None => drop(good(desk, &words)),
            Some(point) => {
                let killed = program_with(desk, &words, &[("LAB_CRASH_AT", point)]);
                assert!(killed.is_err(), "nothing was killed at {point}");
                if point == "rebuild:written" {
                    scene.refused_vm("start web", &["no guest state"]);
                    good(desk, &words);
                }
            }
        }
        let boots = u64::try_from(round).unwrap() + 3;
        assert_eq!(scene.good_vm("start web")["boots"], boots);
        scene.prove("web", id(&made), "x.pdk").await;
        scene.refused_vm("look web debugger", &["protected process"]);
        scene.good_vm("stop web");
        // The same password goes on unlocking the disk, which is another file.
        assert_eq!(scene.write_recovery_key("recovery.txt"), key);
    }
    let files = fs::read_dir(scene.stage.volume_path.join("web")).unwrap();
    let disks = files.filter(|file| file.as_ref().unwrap().file_name().to_string_lossy().starts_with("disk"));
    assert_eq!(disks.count(), 1, "no other disk is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_in_another_configuration_asks_for_its_recovery_password() {
    let scene = Scene::set(&[("HGS_LOG", "trace")]).await;
    let desk = scene.desk.as_path();
    scene.data("x.pdk", "HGS", "encryption-supported");
    let made = scene.good_vm(PROVISION);
    let key = scene.write_recovery_key("recovery.txt");
    scene.good_vm("start web");
    scene.good_vm("stop web");
    fs::write(desk.join("short.txt"), "123456-123456").unwrap();
    let other = guarded_host_sim::vm::recovery::RecoveryPassword::random(&mut hgs_protocol::env::OsRandom);
    fs::write(desk.join("another.txt"), other.expose_text().as_bytes()).unwrap();
    let mut boots = 1;
    for switch in ["--off", "--on"] {
        scene.good_vm(&format!("security web {switch} secure-boot"));
        scene.refused_vm(
            "start web",
            &["does not unseal the volume key", "asks for the recovery password"],
        );
        for (file, reason) in [("short.txt", "48 digits"), ("another.txt", "another disk's")] {
            scene.refused_vm(&format!("start web --recovery-password-file {file}"), &[reason]);
        }
        let started = scene.good_vm("start web --recovery-password-file recovery.txt");
        scene.prove("web", id(&made), "x.pdk").await;
        scene.good_vm("stop web");
        // The key is sealed to what was measured then.
        boots += 2;
        assert_eq!(
            (&started["boots"], &scene.good_vm("start web")["boots"]),
            (&(boots - 1).into(), &boots.into())
        );
        scene.good_vm("stop web");
    }
    // Into a shielded VM nobody types on its host.
    scene.good_vm("security web --kind shielded");
    scene.refused_vm(
        "start web --recovery-password-file recovery.txt",
        &["is seen by the fabric", "vm rebuild"],
    );
    scene.good_vm("start web");
    // The fabric had it in passing; it wrote it nowhere.
    every_file(&scene.stage.folder.0, &mut |path, bytes| {
        let found = bytes.windows(key.len()).any(|window| window == key.as_bytes());
        assert!(!found || path.starts_with(desk), "{}", path.display());
    });
}
