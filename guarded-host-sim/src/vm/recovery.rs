//! The recovery password of a VM's volume: what unlocks it when its vTPM does not, because the vTPM's state is lost or
//! the VM boots in another configuration than the key is sealed to. In the form of BitLocker's: 48 digits in
//! eight groups of six, each a multiple of eleven, which stand for 128 random bits.
//!
//! The disk's header holds the volume key wrapped under the password (RFC 3394, under HKDF(password padded with zeros,
//! `HGS-DISK-RECOVERY`, VM id)), and, of a VM that was made with shielding data, the password sealed for whoever opens that
//! file (AES-256-GCM, [`Escrow`]), as the product keeps it on the disk. The slot, a field of the header: VM id's
//! wrapped key (40 bytes), then nothing, or the 16 bytes of the shielding data's id and the sealed password. The password
//! has all its bits from a generator, so that it is not stretched.

use std::fmt::Write as _;

use hgs_protocol::{
    crypto::{gcm_open, gcm_seal, hkdf_sha256, kw_unwrap, kw_wrap},
    env::Random,
    secret::Secret32,
};
use zeroize::{Zeroize, Zeroizing};

use super::VmId;

/// 128 secret bits. No `Debug`; wiped when dropped.
#[derive(Clone)]
pub struct RecoveryPassword(Zeroizing<[u8; 16]>);

/// A text is no recovery password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoveryPasswordError {
    /// Not eight groups of six digits.
    #[error("a recovery password has 48 digits in eight groups of six")]
    Format,
    /// A group was mistyped.
    #[error("group {0} of the recovery password is mistyped")]
    Group(usize),
}

/// Why a volume is not unlocked by a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoveryError {
    /// The disk was made without one.
    #[error("the disk has no recovery password")]
    None,
    /// Another disk's.
    #[error("the recovery password is another disk's, or the disk's header was changed")]
    Password,
    /// There is nothing to open.
    #[error(
        "the recovery password is not kept on the disk: it was shown once, when its owner made the VM without shielding data"
    )]
    NotKept,
    /// Another file.
    #[error("the disk was made with another shielding data file, {0}")]
    OtherFile(uuid::Uuid),
    /// The owner's file does not open it.
    #[error("the recovery password on the disk does not open: it was changed")]
    Sealed,
    /// The library refused.
    #[error("the volume key could not be wrapped")]
    Refused,
}

/// What a disk's header holds for its recovery.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecoverySlot {
    wrapped: [u8; WRAPPED],
    escrow: Option<([u8; 16], Vec<u8>)>,
}

/// For whom a password is kept on the disk: whoever opens a shielding data file.
pub struct Escrow<'a> {
    /// The id of the file.
    pub file: uuid::Uuid,
    /// Derived from what is sealed in the file, for this VM.
    pub key: &'a Secret32,
}

impl RecoveryPassword {
    /// A fresh password.
    pub fn random(rng: &mut dyn Random) -> RecoveryPassword {
        let mut bits = Zeroizing::new([0; 16]);
        rng.fill(bits.as_mut());
        RecoveryPassword(bits)
    }

    /// Reads what a person typed: digits, with `-`, spaces or nothing between groups.
    pub fn parse(text: &str) -> Result<RecoveryPassword, RecoveryPasswordError> {
        let mut digits = Zeroizing::new(Vec::with_capacity(48));
        for character in text.trim().chars() {
            match character.to_digit(10) {
                Some(digit) if digits.len() < 48 => digits.push(digit),
                None if character == '-' || character.is_whitespace() => {}
                _ => return Err(RecoveryPasswordError::Format),
            }
        }
        if digits.len() != 48 {
            return Err(RecoveryPasswordError::Format);
        }
        let mut bits = Zeroizing::new([0; 16]);
        for (at, (group, two)) in digits.chunks(6).zip(bits.chunks_mut(2)).enumerate() {
            let number = group.iter().fold(0_u32, |number, digit| number * 10 + digit);
            let value = (number % 11 == 0).then(|| u16::try_from(number / 11).ok()).flatten();
            let value = value.ok_or(RecoveryPasswordError::Group(at + 1))?;
            two.copy_from_slice(&value.to_le_bytes());
        }
        Ok(RecoveryPassword(bits))
    }

    /// The password as its owner writes it down.
    pub fn expose_text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(55));
        for two in self.0.as_chunks::<2>().0 {
            let number = u32::from(u16::from_le_bytes(*two)) * 11;
            let dash = if text.is_empty() { "" } else { "-" };
            // Writing to a string does not fail.
            let _ = write!(text, "{dash}{number:06}");
        }
        text
    }

    fn key(&self, vm: VmId) -> Secret32 {
        let mut padded = [0; 32];
        padded.iter_mut().zip(self.0.iter()).for_each(|(to, from)| *to = *from);
        let key = hkdf_sha256(&Secret32::new(padded), LABEL, vm.bytes());
        padded.zeroize();
        key
    }
}

impl RecoverySlot {
    /// Wraps the volume key of `vm` under `password`, and keeps the password for whoever has the key of `escrow`.
    pub fn new(
        vm: VmId,
        volume_key: &Secret32,
        password: &RecoveryPassword,
        escrow: Option<&Escrow<'_>>,
        rng: &mut dyn Random,
    ) -> Result<RecoverySlot, RecoveryError> {
        let wrapped = kw_wrap(&password.key(vm), volume_key).map_err(|_| RecoveryError::Refused)?;
        let wrapped = wrapped.try_into().map_err(|_| RecoveryError::Refused)?;
        let escrow = escrow.map(|escrow| {
            let file = *escrow.file.as_bytes();
            let sealed = gcm_seal(
                escrow.key,
                &authenticated(vm, &wrapped, &file),
                password.0.as_slice(),
                rng,
            );
            (file, sealed)
        });
        Ok(RecoverySlot { wrapped, escrow })
    }

    /// The volume key.
    pub fn unlock(&self, vm: VmId, password: &RecoveryPassword) -> Result<Secret32, RecoveryError> {
        kw_unwrap(&password.key(vm), &self.wrapped).map_err(|_| RecoveryError::Password)
    }

    /// The id of the shielding data file that gives the password.
    pub fn file(&self) -> Result<uuid::Uuid, RecoveryError> {
        let (file, _) = self.escrow.as_ref().ok_or(RecoveryError::NotKept)?;
        Ok(uuid::Uuid::from_bytes(*file))
    }

    /// The password, for whoever has opened its file.
    pub fn password(&self, vm: VmId, escrow: &Escrow<'_>) -> Result<RecoveryPassword, RecoveryError> {
        let (file, sealed) = self.escrow.as_ref().ok_or(RecoveryError::NotKept)?;
        if file != escrow.file.as_bytes() {
            return Err(RecoveryError::OtherFile(uuid::Uuid::from_bytes(*file)));
        }
        let bits = gcm_open(escrow.key, &authenticated(vm, &self.wrapped, file), sealed);
        let bits = bits.map_err(|_| RecoveryError::Sealed)?;
        let mut password = RecoveryPassword(Zeroizing::new([0; 16]));
        if bits.len() != password.0.len() {
            return Err(RecoveryError::Sealed);
        }
        password.0.copy_from_slice(&bits);
        Ok(password)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = self.wrapped.to_vec();
        if let Some((file, sealed)) = &self.escrow {
            out.extend_from_slice(file);
            out.extend_from_slice(sealed);
        }
        out
    }

    /// Reads the field of a header; an empty one is a disk without recovery.
    pub(super) fn parse(field: &[u8]) -> Option<Option<RecoverySlot>> {
        if field.is_empty() {
            return Some(None);
        }
        let (wrapped, rest) = field.split_first_chunk::<WRAPPED>()?;
        let escrow = match rest {
            [] => None,
            _ => {
                let (file, sealed) = rest.split_first_chunk::<16>()?;
                (sealed.len() == SEALED).then_some(Some((*file, sealed.to_vec())))?
            }
        };
        Some(Some(RecoverySlot {
            wrapped: *wrapped,
            escrow,
        }))
    }
}

fn authenticated(vm: VmId, wrapped: &[u8; WRAPPED], file: &[u8; 16]) -> Vec<u8> {
    [vm.bytes().as_slice(), wrapped, file].concat()
}

const LABEL: &str = "HGS-DISK-RECOVERY";
const WRAPPED: usize = 40;
/// Nonce, 16 bytes, tag.
const SEALED: usize = 12 + 16 + 16;

#[cfg(test)]
mod tests {
    use super::*;
    use hgs_protocol::env::SeededRandom;
    use proptest::prelude::*;

    #[test]
    fn a_mistyped_group_is_named() {
        let password = RecoveryPassword::random(&mut SeededRandom::new(1));
        let text = password.expose_text();
        assert_eq!(text.len(), 55);
        let spaced = text.replace('-', " ");
        assert!(RecoveryPassword::parse(&format!(" {spaced}\n")).unwrap().0 == password.0);
        assert!(RecoveryPassword::parse(&text.replace('-', "")).is_ok());
        for group in 0..8 {
            // Any other digit in one place is no multiple of eleven.
            let at = group * 7 + 2;
            let mut mistyped = text.as_bytes().to_vec();
            mistyped[at] = b'0' + (mistyped[at] - b'0' + 1) % 10;
            let read = RecoveryPassword::parse(std::str::from_utf8(&mistyped).unwrap());
            assert_eq!(read.err(), Some(RecoveryPasswordError::Group(group + 1)));
        }
        for bad in [
            "",
            "1",
            &text[1..],
            &format!("{}0", &**text),
            &text.replace('0', "o").replace('1', "l"),
        ] {
            assert_eq!(
                RecoveryPassword::parse(bad).err(),
                Some(RecoveryPasswordError::Format),
                "{bad}"
            );
        }
        // 720,896 is eleven times 65,536, which is no 16 bits.
        let large = format!("720896-{}", &text[7..]);
        assert_eq!(
            RecoveryPassword::parse(&large).err(),
            Some(RecoveryPasswordError::Group(1))
        );
    }

    #[test]
    fn a_slot_opens_for_its_password_and_its_file_alone() {
        let rng: &mut dyn Random = &mut SeededRandom::new(2);
        let (vm, other_vm) = (VmId::random(rng), VmId::random(rng));
        let (volume_key, key, other_key) = (Secret32::random(rng), Secret32::random(rng), Secret32::random(rng));
        let [password, other] = [(); 2].map(|()| RecoveryPassword::random(rng));
        let escrow = |file: u8, key| Escrow {
            file: uuid::Uuid::from_bytes([file; 16]),
            key,
        };
        let slot = RecoverySlot::new(vm, &volume_key, &password, Some(&escrow(1, &key)), rng).unwrap();
        assert_eq!(slot.unlock(vm, &password).unwrap().expose(), volume_key.expose());
        assert_eq!(slot.unlock(vm, &other).err(), Some(RecoveryError::Password));
        assert_eq!(slot.unlock(other_vm, &password).err(), Some(RecoveryError::Password));
        assert!(slot.password(vm, &escrow(1, &key)).unwrap().0 == password.0);
        let of_other = slot.password(vm, &escrow(2, &key)).err();
        assert!(matches!(of_other, Some(RecoveryError::OtherFile(_))));
        assert_eq!(
            slot.password(vm, &escrow(1, &other_key)).err(),
            Some(RecoveryError::Sealed)
        );
        assert_eq!(
            slot.password(other_vm, &escrow(1, &key)).err(),
            Some(RecoveryError::Sealed)
        );

        // Another's key, wrapped under another's password, beside the owner's password.
        let forged = RecoverySlot::new(vm, &other_key, &other, None, rng).unwrap();
        assert_eq!(
            forged.password(vm, &escrow(1, &key)).err(),
            Some(RecoveryError::NotKept)
        );
        let forged = RecoverySlot {
            wrapped: forged.wrapped,
            ..slot.clone()
        };
        assert_eq!(forged.password(vm, &escrow(1, &key)).err(), Some(RecoveryError::Sealed));

        let encoded = slot.encode();
        assert_eq!(RecoverySlot::parse(&encoded), Some(Some(slot)));
        for cut in 1..encoded.len() {
            let read = RecoverySlot::parse(&encoded[..cut]);
            assert_eq!(read.is_some(), cut == WRAPPED, "cut at {cut}");
        }
        assert_eq!(RecoverySlot::parse(&[]), Some(None));
    }

    proptest! {
        #[test]
        fn a_password_survives_its_digits(bits: [u8; 16]) {
            let password = RecoveryPassword(Zeroizing::new(bits));
            let text = password.expose_text();
            for group in text.split('-') {
                prop_assert_eq!(group.len(), 6);
                prop_assert_eq!(group.parse::<u32>().unwrap() % 11, 0);
            }
            prop_assert_eq!(*RecoveryPassword::parse(&text).unwrap().0, bits);
        }

        #[test]
        fn hostile_texts_and_slots_never_panic(text: String, bytes: Vec<u8>) {
            let _ = RecoveryPassword::parse(&text);
            let _ = RecoverySlot::parse(&bytes);
        }
    }
}
