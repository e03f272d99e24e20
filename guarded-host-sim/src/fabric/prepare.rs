//! `prepare`: makes what a fabric in containers needs before its parts start: keys, passwords, tokens and
//! certificates of the services, the TPM maker, the name tables, and the description with which
//! administrators attach. Each service finds only its own folder. Does nothing once all is there, and
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
    Elsewhere, HostElsewhere, found_tpm_maker,
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
    /// Folder of the database server: the services' passwords
    #[arg(long)]
    pub database: PathBuf,
    /// Folder of the front door: certificate and key for https
    #[arg(long)]
    pub front_door: PathBuf,
    /// Folder of the administrator: `fabric.json` with the tokens
    #[arg(long)]
    pub lab: PathBuf,
    /// Folder that every host reads: name tables, root certificate and TPM maker
    #[arg(long)]
    pub shared: PathBuf,
    /// Folder of the sockets over which the lab moves clocks
    #[arg(long)]
    pub clocks: PathBuf,
    /// Folder below which each host keeps everything
    #[arg(long)]
    pub hosts: PathBuf,
    /// Folder below which each fabric has its volume
    #[arg(long)]
    pub volumes: PathBuf,
    /// Address of the database server
    #[arg(long)]
    pub database_address: IpAddr,
    /// Address of the front door, as administrators reach it
    #[arg(long)]
    pub front_door_address: IpAddr,
    /// A fabric and the front door's address in it, `contoso=10.0.7.10`; may be repeated, the first is the one of stories
    #[arg(long = "fabric", value_parser = named_address, required = true)]
    pub fabrics: Vec<(String, IpAddr)>,
    /// A host, its address and its fabric, `host01=10.0.7.21@contoso`; may be repeated
    #[arg(long = "host", value_parser = host_place)]
    pub hosts_of_fabrics: Vec<HostPlace>,
}

/// Where a host will be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPlace {
    /// Its name.
    pub name: String,
    /// Where its agent will answer.
    pub address: IpAddr,
    /// The fabric whose volume it has.
    pub fabric: String,
}

/// Makes it all.
pub fn run(args: &PrepareArgs) -> anyhow::Result<()> {
    let description = args.lab.join("fabric.json");
    if description.exists() {
        return Ok(());
    }
    let mut hosts = BTreeMap::new();
    for place in &args.hosts_of_fabrics {
        hosts.insert(place.name.clone(), host(args, place)?);
    }
    let (first, _) = args.fabrics.first().context("there is no fabric")?;
    let elsewhere = Elsewhere {
        attestation: service(args, "attestation", &args.attestation, ATTESTATION_ADMIN)?,
        kps: service(args, "kps", &args.kps, KPS_ADMIN)?,
        hosts,
        volume: args.volumes.join(first),
        tpm_maker: args.shared.join("tpm-maker"),
    };
    front_door(args)?;
    found_tpm_maker(&elsewhere.tpm_maker, &args.shared.join("first-tpm"))?;
    for (fabric, address) in &args.fabrics {
        let ports = [80, 443].map(|port| (format!("{HGS}:{port}"), vec![SocketAddr::new(*address, port)]));
        let names = NameTable(BTreeMap::from(ports));
        let file = args.shared.join(format!("names-{fabric}.json"));
        fs::write(file, serde_json::to_vec_pretty(&names)?)?;
    }
    // Written last: its presence says that all is there.
    write_private(&description, &serde_json::to_string_pretty(&elsewhere)?)?;
    println!("the fabric is prepared: {}", description.display());
    Ok(())
}

/// Folder and description of one service, whose administrators' port at the front door is `port`.
fn service(args: &PrepareArgs, name: &str, folder: &Path, port: u16) -> anyhow::Result<Attachment> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    fs::create_dir_all(&args.database).with_context(|| format!("cannot create {}", args.database.display()))?;
    let rng = &mut OsRandom;
    // An attempt that was cut short may have left files. A key-encryption key is never replaced: something may be
    // sealed under it already.
    let key = folder.join("key-encryption-key");
    let password = args.database.join(name);
    for secret in [&key, &password] {
        if !secret.exists() {
            write_private(secret, &hex::encode(Secret32::random(rng).expose()))?;
        }
    }
    let password = fs::read_to_string(password)?;
    let (token, line) = new_token(Role::Administrator, rng);
    let tokens = folder.join("admin-tokens");
    fs::write(&tokens, line + "\n")?;
    let _ = fs::remove_dir_all(folder.join("tls"));
    let front_door = args.front_door_address;
    let tls = tls::issue(&folder.join("tls"), &[name, &front_door.to_string(), "localhost"])?;
    let root = args.lab.join(format!("{name}-root.pem"));
    fs::copy(&tls.root, &root).with_context(|| format!("cannot write {}", root.display()))?;
    let path = |path: &Path| path.display().to_string();
    let database = SocketAddr::new(args.database_address, POSTGRES);
    let settings: BTreeMap<&str, String> = BTreeMap::from([
        ("listen", format!("0.0.0.0:{SERVICE}")),
        ("admin-listen", format!("0.0.0.0:{ADMIN}")),
        ("tls-certificate", path(&tls.certificate)),
        ("tls-key", path(&tls.key)),
        // All that lasts is in the database.
        ("data-dir", "/tmp/data".to_owned()),
        (
            "database-url",
            format!("postgres://{name}:{password}@{database}/{name}"),
        ),
        ("key-encryption-key-file", path(&key)),
        ("admin-tokens", path(&tokens)),
    ]);
    let lines: Vec<String> = settings
        .iter()
        .map(|(key, value)| format!("{key} = {value:?}\n"))
        .collect();
    let file = folder.join("service.toml");
    let _ = fs::remove_file(&file);
    write_private(&file, &lines.concat())?;
    Ok(Attachment {
        url: format!("http://{}", SocketAddr::new(front_door, 80)),
        https: Some((
            format!("https://{}", SocketAddr::new(front_door, 443)),
            args.lab.join(HGS_ROOT),
        )),
        admin_url: format!("https://{}", SocketAddr::new(front_door, port)),
        token,
        root: Some(root),
        clock: args.clocks.join(name),
        replica_clocks: [2, 3].map(|n| args.clocks.join(format!("{name}-{n}"))).to_vec(),
    })
}

/// Certificate and key with which the front door speaks https, in one file as HAProxy wants it.
fn front_door(args: &PrepareArgs) -> anyhow::Result<()> {
    let folder = args.front_door.join("tls");
    let _ = fs::remove_dir_all(&folder);
    let addresses = args.fabrics.iter().map(|(_, address)| address.to_string());
    let names: Vec<String> = [HGS.to_owned(), args.front_door_address.to_string()]
        .into_iter()
        .chain(addresses)
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let tls = tls::issue(&folder, &names)?;
    for place in [&args.shared, &args.lab] {
        let root = place.join(HGS_ROOT);
        fs::copy(&tls.root, &root).with_context(|| format!("cannot write {}", root.display()))?;
    }
    let file = args.front_door.join("hgs.pem");
    let _ = fs::remove_file(&file);
    let both = fs::read_to_string(&tls.certificate)? + &fs::read_to_string(&tls.key)?;
    write_private(&file, &both)
}

fn host(args: &PrepareArgs, place: &HostPlace) -> anyhow::Result<HostElsewhere> {
    let known = args.fabrics.iter().any(|(fabric, _)| *fabric == place.fabric);
    anyhow::ensure!(known, "{} is in {}, which is no --fabric", place.name, place.fabric);
    Ok(HostElsewhere {
        folder: args.hosts.join(&place.name),
        agent_url: format!("http://{}", SocketAddr::new(place.address, AGENT)),
        fabric: place.fabric.clone(),
        volume: args.volumes.join(&place.fabric),
    })
}

fn named_address(text: &str) -> Result<(String, IpAddr), String> {
    let (name, address) = text.split_once('=').ok_or("say NAME=ADDRESS")?;
    Ok((
        name.to_owned(),
        address.parse().map_err(|_| format!("{address} is no IP address"))?,
    ))
}

fn host_place(text: &str) -> Result<HostPlace, String> {
    let (host, fabric) = text.split_once('@').ok_or("say NAME=ADDRESS@FABRIC")?;
    let (name, address) = named_address(host)?;
    Ok(HostPlace {
        name,
        address,
        fabric: fabric.to_owned(),
    })
}

/// The name under which clients know the HGS.
const HGS: &str = "hgs.bastion.local";
/// The root certificate for https at the front door.
const HGS_ROOT: &str = "hgs-root.pem";
const SERVICE: u16 = 8080;
const ADMIN: u16 = 8444;
const ATTESTATION_ADMIN: u16 = 8444;
const KPS_ADMIN: u16 = 8445;
const POSTGRES: u16 = 5432;
const AGENT: u16 = 8700;

#[cfg(test)]
mod tests {
    use super::*;

    fn args(folder: &Path) -> PrepareArgs {
        let path = |name: &str| folder.join(name);
        for name in ["lab", "shared", "clocks", "front-door"] {
            fs::create_dir_all(path(name)).unwrap();
        }
        PrepareArgs {
            attestation: path("attestation"),
            kps: path("kps"),
            database: path("database"),
            front_door: path("front-door"),
            lab: path("lab"),
            shared: path("shared"),
            clocks: path("clocks"),
            hosts: path("hosts"),
            volumes: path("volumes"),
            database_address: [10, 0, 9, 10].into(),
            front_door_address: [10, 0, 6, 10].into(),
            fabrics: vec![named_address("contoso=10.0.7.10").unwrap()],
            hosts_of_fabrics: vec![host_place("host01=10.0.7.21@contoso").unwrap()],
        }
    }

    #[test]
    fn an_attempt_that_was_cut_short_is_repeated_and_keeps_what_may_be_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let args = args(folder.path());
        let first = service(&args, "kps", &args.kps, KPS_ADMIN).unwrap();
        let kept = || {
            [
                fs::read(args.kps.join("key-encryption-key")).unwrap(),
                fs::read(args.database.join("kps")).unwrap(),
            ]
        };
        let before = kept();
        front_door(&args).unwrap();
        let again = service(&args, "kps", &args.kps, KPS_ADMIN).unwrap();
        front_door(&args).unwrap();
        assert_eq!(kept(), before);
        assert_ne!(first.token, again.token);
        assert_eq!(again.admin_url, "https://10.0.6.10:8445");
        let pem = fs::read_to_string(args.front_door.join("hgs.pem")).unwrap();
        assert!(pem.contains("BEGIN CERTIFICATE") && pem.contains("PRIVATE KEY"));
    }

    #[test]
    fn a_host_of_no_fabric_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let args = args(folder.path());
        assert_eq!(
            host(&args, &args.hosts_of_fabrics[0]).unwrap().volume,
            folder.path().join("volumes/contoso")
        );
        let other = host_place("host01=10.0.7.21@fabrikam").unwrap();
        assert!(host(&args, &other).is_err());
    }

    #[test]
    fn a_host_without_an_address_is_refused() {
        assert!(host_place("host01@contoso").is_err());
        assert!(host_place("host01=here@contoso").is_err());
        assert!(host_place("host01=10.0.0.1").is_err());
    }
}
