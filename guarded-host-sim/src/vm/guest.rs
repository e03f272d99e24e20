//! The guest of a shielded VM: a boot chain measured into the vTPM, a volume to unlock, a secret to read.
//!
//! The guest's boot measures into the vTPM's PCR 7 (its Secure Boot configuration). The volume key
//! is sealed to that value of PCR 7 and to an untouched PCR 11; the boot manager extends PCR 11 once
//! the volume is unlocked, so nothing in the running guest can unseal the key again. The guest runs
//! inside the VBS store, because whatever sees its memory sees its secret.

use std::time::{Duration, Instant};

use hgs_protocol::{
    crypto::{hmac_sha256, sha256},
    env::Random,
    secret::Secret32,
};
use zeroize::Zeroizing;

use super::{
    VmId,
    disk::{CHUNK, Disk, DiskError, DiskWriter, LockedDisk},
    fields,
    layout::Map,
    recovery::RecoveryPassword,
    security::Channel,
    vtpm::{Vtpm, VtpmError},
};

/// PCR of the guest's Secure Boot configuration.
pub const BOOT_PCR: u8 = 7;
/// PCR that the guest's boot manager extends after it has unlocked the volume.
pub const UNLOCK_PCR: u8 = 11;
/// What the guest's firmware measures into [`BOOT_PCR`], in order.
const BOOT_MEASUREMENTS: [&[u8]; 3] = [SECURE_BOOT_ON, FIRMWARE, &[0; 4]];
/// The same with Secure Boot off.
const INSECURE_MEASUREMENTS: [&[u8]; 3] = [b"SecureBoot=0", FIRMWARE, &[0; 4]];
const SECURE_BOOT_ON: &[u8] = b"SecureBoot=1";
const FIRMWARE: &[u8] = b"PK,KEK,db,dbx of the guest's firmware";
const UNLOCKED: &[u8] = b"volume unlocked";
/// Chunk of the volume that holds the owner's secret: u32 length, then the secret.
const SECRET_CHUNK: u32 = 0;
/// Chunk that counts boots: u64, then 1 if the guest was shut down since the last one. Its presence shows
/// that the volume is written, not only read.
const BOOT_COUNT_CHUNK: u32 = 1;
/// Chunk with the key by which the guest answers its owner's challenges: u32 length, then 32 random
/// bytes. The agent chooses challenges as it likes, so the answers must tell nothing of the secret.
const PROOF_KEY_CHUNK: u32 = 2;
/// Chunk with the volume's half of the guest's tally: u64; zero on a new disk.
const TALLY_CHUNK: u32 = 3;
/// Chunks of a new disk.
const CHUNKS: u32 = 16;

/// A running guest. Its memory holds the secret that it read from its volume.
pub struct Guest {
    disk_key: Secret32,
    disk: Disk,
    secret: Zeroizing<Vec<u8>>,
    proof_key: Secret32,
    boot_id: [u8; 16],
    boots: u64,
    after_shutdown: bool,
    tally: Tally,
    uptime_before: Duration,
    resumed: Instant,
}

/// What a guest has counted when it was asked to: two counters that only grow, each kept where a guest keeps
/// what must last. They tell whoever remembers them whether a VM has lost something.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Tally {
    /// On the volume: one for each time.
    pub volume: u64,
    /// In an NV counter of the vTPM, whose first value is the vTPM's choice; 0 before that.
    pub vtpm: u64,
}

/// What a guest tells of itself. Holds nothing secret.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct GuestReport {
    /// Drawn at boot and kept in memory: equal values mean the same boot.
    pub boot_id: String,
    /// How often the volume was booted from.
    pub boots: u64,
    /// Running time since boot in milliseconds, over migrations too.
    pub uptime_ms: u64,
    /// Whether the boot before this one ended by a shutdown, rather than by a power cut; true at the first boot.
    #[serde(default)]
    pub after_shutdown: bool,
    /// As it stood on volume and vTPM when the guest booted or went on, and what it has counted since.
    #[serde(default)]
    pub tally: Tally,
}

/// How a guest boots.
#[derive(Clone, Copy)]
pub struct Boot<'a> {
    /// Whether Secure Boot is on. The measurements show it, so a volume whose key is sealed to the one stays locked
    /// with the other.
    pub secure: bool,
    /// What somebody types where the guest asks for its recovery password.
    pub recovery: Option<&'a RecoveryPassword>,
}

impl Default for Boot<'_> {
    fn default() -> Self {
        Boot {
            secure: true,
            recovery: None,
        }
    }
}

impl Boot<'_> {
    fn measurements(&self) -> [&'static [u8]; 3] {
        match self.secure {
            true => BOOT_MEASUREMENTS,
            false => INSECURE_MEASUREMENTS,
        }
    }
}

/// Why a guest does not come up.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The vTPM refused: its policy names other measurements, or the sealed key is another vTPM's.
    #[error("the vTPM does not unseal the volume key: {0}")]
    Vtpm(#[from] VtpmError),
    /// The same, and the volume has a recovery password.
    #[error(
        "the vTPM does not unseal the volume key: {0}; the guest asks for the recovery password of its volume (vm start \
         --recovery-password-file)"
    )]
    Recovery(#[source] VtpmError),
    /// The volume does not open.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The disk belongs to another VM.
    #[error("the disk belongs to the VM {disk}, not to {vm}")]
    ForeignDisk {
        /// Whose disk it is.
        disk: VmId,
        /// Who wants to boot from it.
        vm: VmId,
    },
    /// The virtual TPM is turned off, and nothing else unlocks the volume.
    #[error("the VM has no virtual TPM (it is turned off), and without it the guest's volume stays locked")]
    NoVtpm,
    /// The volume or the memory image has not the expected contents.
    #[error("the guest's {0} is damaged")]
    Damaged(&'static str),
}

impl Guest {
    /// Boots from the disk: measure, unseal, unlock, read the secret.
    pub fn boot(vm: VmId, vtpm: &mut Vtpm, disk: LockedDisk, rng: &mut dyn Random) -> Result<Guest, GuestError> {
        Guest::boot_as(Boot::default(), vm, vtpm, disk, rng)
    }

    /// As [`Guest::boot`], in another configuration, or with a recovery password.
    pub fn boot_as(
        boot: Boot<'_>,
        vm: VmId,
        vtpm: &mut Vtpm,
        disk: LockedDisk,
        rng: &mut dyn Random,
    ) -> Result<Guest, GuestError> {
        let (disk, disk_key) = unlock(boot, vm, vtpm, disk, rng)?;
        let secret = read_secret(&disk)?;
        let chunk = disk.read(PROOF_KEY_CHUNK)?;
        let proof_key = fields::take(&mut chunk.as_slice())
            .and_then(Secret32::from_slice)
            .ok_or(GuestError::Damaged("volume"))?;
        let counter = disk.read(BOOT_COUNT_CHUNK)?;
        let rest = &mut counter.as_slice();
        let before = fields::take_u64(rest).ok_or(GuestError::Damaged("volume"))?;
        let after_shutdown = before == 0 || rest.first() == Some(&1);
        let boots = before.saturating_add(1);
        disk.write(BOOT_COUNT_CHUNK, &boots.to_le_bytes(), rng)?;
        Ok(Guest {
            disk_key,
            secret,
            proof_key,
            tally: tally(&disk, vtpm)?,
            disk,
            boot_id: rng.bytes(),
            boots,
            after_shutdown,
            uptime_before: Duration::ZERO,
            resumed: Instant::now(),
        })
    }

    /// Ends in an orderly way: the next boot finds it on the volume.
    pub fn shut_down(self, rng: &mut dyn Random) -> Result<(), GuestError> {
        let chunk = [self.boots.to_le_bytes().as_slice(), &[1]].concat();
        Ok(self.disk.write(BOOT_COUNT_CHUNK, &chunk, rng)?)
    }

    /// Goes on from a memory image on another host. The volume key is part of the memory, as with
    /// every running guest that has its volume unlocked.
    pub fn resume(vm: VmId, vtpm: &mut Vtpm, memory: &[u8], disk: LockedDisk) -> Result<Guest, GuestError> {
        if disk.vm() != vm {
            return Err(GuestError::ForeignDisk { disk: disk.vm(), vm });
        }
        let parts = |rest: &mut &[u8]| {
            let boot_id = fields::take_array::<16>(rest)?;
            let boots = fields::take_u64(rest)?;
            let uptime = fields::take_u64(rest)?;
            let after_shutdown = fields::take_array::<1>(rest)? == [1];
            let key = Secret32::from_slice(fields::take(rest)?)?;
            let proof_key = Secret32::from_slice(fields::take(rest)?)?;
            let secret = Zeroizing::new(fields::take(rest)?.to_vec());
            rest.is_empty()
                .then_some((boot_id, boots, uptime, after_shutdown, key, proof_key, secret))
        };
        let (boot_id, boots, uptime, after_shutdown, disk_key, proof_key, secret) =
            parts(&mut &*memory).ok_or(GuestError::Damaged("memory image"))?;
        let disk = disk.unlock(disk_key.clone());
        disk.read(SECRET_CHUNK)?;
        Ok(Guest {
            disk_key,
            tally: tally(&disk, vtpm)?,
            disk,
            secret,
            proof_key,
            boot_id,
            boots,
            after_shutdown,
            uptime_before: Duration::from_millis(uptime),
            resumed: Instant::now(),
        })
    }

    /// The memory image, for what is sealed and for a debugger that the VM's kind allows: it holds every
    /// secret of the guest.
    pub fn expose_memory(&self) -> Zeroizing<Vec<u8>> {
        let mut out = Zeroizing::new(Vec::with_capacity(self.secret.len() + 128));
        out.extend_from_slice(&self.boot_id);
        out.extend_from_slice(&self.boots.to_le_bytes());
        out.extend_from_slice(&self.uptime_ms().to_le_bytes());
        out.push(u8::from(self.after_shutdown));
        fields::put(&mut out, self.disk_key.expose());
        fields::put(&mut out, self.proof_key.expose());
        fields::put(&mut out, &self.secret);
        out
    }

    /// Answers an owner's challenge with the proof key of the volume, which has nothing to do with the
    /// secret: only a guest whose vTPM unlocked the volume can.
    pub fn prove(&self, challenge: &[u8]) -> [u8; 32] {
        proof(&self.proof_key, challenge)
    }

    /// Counts one more in the vTPM, then on the volume, which is durable when this returns; what the vTPM has
    /// written is its host's to keep.
    pub fn count(&mut self, vtpm: &mut Vtpm, rng: &mut dyn Random) -> Result<GuestReport, GuestError> {
        let vtpm = vtpm.count()?;
        let volume = self.tally.volume.saturating_add(1);
        self.disk.write(TALLY_CHUNK, &volume.to_le_bytes(), rng)?;
        self.tally = Tally { volume, vtpm };
        Ok(self.report())
    }

    /// What may be shown on the host.
    pub fn report(&self) -> GuestReport {
        GuestReport {
            boot_id: hex::encode(self.boot_id),
            boots: self.boots,
            uptime_ms: self.uptime_ms(),
            after_shutdown: self.after_shutdown,
            tally: self.tally,
        }
    }

    /// What comes out of `channel`. Whether it may is decided by [`super::security::Security::allows`].
    pub fn expose(&self, channel: Channel) -> Zeroizing<Vec<u8>> {
        let (boots, id) = (self.boots, hex::encode(self.boot_id));
        Zeroizing::new(match channel {
            Channel::Debugger => return self.expose_memory(),
            Channel::Console => format!("boot {boots} of this volume ({id})\nlogin: ").into_bytes(),
            Channel::Serial => format!("boot manager: volume unlocked by the vTPM\nboot {boots}\n").into_bytes(),
            Channel::PowershellDirect => format!("PS C:\\> (Get-Boot).Count\n{boots}\n").into_bytes(),
            Channel::DataExchange => {
                let name = computer_name(&self.secret).map(|name| format!("ComputerName={name}\n"));
                format!("{}BootCount={boots}\nBootId={id}\n", name.unwrap_or_default()).into_bytes()
            }
        })
    }

    /// Whose disk the guest runs from.
    pub fn vm(&self) -> VmId {
        self.disk.vm()
    }

    fn uptime_ms(&self) -> u64 {
        let uptime = self.uptime_before.saturating_add(self.resumed.elapsed());
        u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX)
    }
}

/// The owner's secret: the answer file of a VM that was provisioned, else what the owner wrote.
pub fn read_secret(disk: &Disk) -> Result<Zeroizing<Vec<u8>>, GuestError> {
    if let Some(map) = Map::read(disk)? {
        let answer_file = map.files(disk)?.into_iter().next();
        return answer_file
            .map(|file| file.content)
            .ok_or(GuestError::Damaged("volume"));
    }
    let chunk = disk.read(SECRET_CHUNK)?;
    let secret = fields::take(&mut chunk.as_slice()).map(<[u8]>::to_vec);
    secret.map(Zeroizing::new).ok_or(GuestError::Damaged("volume"))
}

/// What the guest does before it can read its volume: measures, unseals the volume key, and sees to it that nobody
/// unseals it again. Where the vTPM refuses, the recovery password unlocks, and the key is sealed to what was measured
/// now, for the next boot.
pub fn unlock(
    boot: Boot<'_>,
    vm: VmId,
    vtpm: &mut Vtpm,
    disk: LockedDisk,
    rng: &mut dyn Random,
) -> Result<(Disk, Secret32), GuestError> {
    if disk.vm() != vm {
        return Err(GuestError::ForeignDisk { disk: disk.vm(), vm });
    }
    for data in boot.measurements() {
        vtpm.extend(BOOT_PCR, &sha256(data))?;
    }
    let (key, anew) = match (vtpm.unseal_volume_key(disk.sealed_key(), rng), boot.recovery) {
        (Ok(key), _) => (key, None),
        (Err(error), Some(password)) if error.is_refusal() => {
            let key = disk.recover(password)?;
            let sealed = vtpm.seal_volume_key_to(&boot_pcr(boot.measurements()), &key, rng)?;
            (key, Some(sealed))
        }
        (Err(error), None) if error.is_refusal() && disk.recovery().is_some() => {
            return Err(GuestError::Recovery(error));
        }
        (Err(error), _) => return Err(error.into()),
    };
    vtpm.extend(UNLOCK_PCR, &sha256(UNLOCKED))?;
    let mut disk = disk.unlock(key.clone());
    if let Some(sealed) = anew {
        // A key that does not open the volume is sealed nowhere.
        disk.read(SECRET_CHUNK)?;
        disk.seal_to(sealed)?;
    }
    Ok((disk, key))
}

fn tally(disk: &Disk, vtpm: &mut Vtpm) -> Result<Tally, GuestError> {
    let chunk = disk.read(TALLY_CHUNK)?;
    Ok(Tally {
        volume: fields::take_u64(&mut chunk.as_slice()).ok_or(GuestError::Damaged("volume"))?,
        vtpm: vtpm.counted()?,
    })
}

/// The name that an answer file gives to its computer, if it is one.
fn computer_name(answer_file: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(answer_file).ok()?;
    let (_, rest) = text.split_once("<ComputerName>")?;
    let (name, _) = rest.split_once("</ComputerName>")?;
    let good = (1..=63).contains(&name.len()) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    good.then_some(name)
}

/// Writes the disk of a VM that is provisioned: the owner's files (`answer_file` first), then what `volume` gives.
pub fn write_disk<E: From<DiskError>>(
    mut disk: DiskWriter<'_>,
    map: &Map,
    proof_key: &Secret32,
    files: &[u8],
    volume: impl FnOnce(&mut DiskWriter<'_>, &mut dyn Random) -> Result<(), E>,
    rng: &mut dyn Random,
) -> Result<(), E> {
    let mut proof = Zeroizing::new(Vec::with_capacity(CHUNK));
    fields::put(&mut proof, proof_key.expose());
    // No secret of its own, no boot and no tally yet.
    for chunk in [&[][..], &[], &proof, &[], &map.encode()] {
        disk.chunk(chunk, rng)?;
    }
    disk.append(files, rng)?;
    disk.end_extent(rng)?;
    volume(&mut disk, rng)?;
    Ok(disk.finish(rng)?)
}

/// What a guest that has read `proof_key` from its volume answers to `challenge`.
pub fn proof(proof_key: &Secret32, challenge: &[u8]) -> [u8; 32] {
    hmac_sha256(proof_key.expose(), &[b"HGS-GUEST-PROOF\0", challenge])
}

/// The value of [`BOOT_PCR`] (SHA-256 bank) after a regular boot of the guest.
pub fn expected_boot_pcr() -> [u8; 32] {
    boot_pcr(BOOT_MEASUREMENTS)
}

fn boot_pcr(measurements: [&[u8]; 3]) -> [u8; 32] {
    measurements
        .iter()
        .fold([0; 32], |pcr, data| sha256(&[pcr.as_slice(), &sha256(data)].concat()))
}

/// The bytes of a new disk that holds `secret`, which must fit into one chunk, and `proof_key`.
pub fn new_disk(
    vm: VmId,
    secret: &[u8],
    proof_key: &Secret32,
    locks: &super::disk::Locks,
    key: &Secret32,
    rng: &mut dyn Random,
) -> Result<Vec<u8>, GuestError> {
    let mut first = Zeroizing::new(Vec::with_capacity(CHUNK));
    fields::put(&mut first, secret);
    if first.len() > CHUNK {
        return Err(GuestError::Damaged("secret (too long for one chunk of the volume)"));
    }
    let mut third = Zeroizing::new(Vec::with_capacity(CHUNK));
    fields::put(&mut third, proof_key.expose());
    Ok(Disk::format(vm, CHUNKS, locks, key, &[&first, &[], &third], rng)?)
}
