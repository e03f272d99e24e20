//! The RTPM context (MS-HGSA 2.2.2.25 to 2.2.2.27): TPM commands and their answers, carried between
//! attestation and a host together with the server's own sealed state.
//!
//! Knows the framing and its bounds. What the sealed state holds, and whether an answer may be
//! believed, is decided by attestation; no TPM command is interpreted here.

/// One context, either direction. All integers on the wire are little-endian.
///
/// | offset | size | field |
/// | --- | --- | --- |
/// | 0 | 4 | size of the entire context |
/// | 4 | 4 | version, 1 |
/// | 8 | 4 | number of data blobs |
/// | 12 | 4 | reserved, written 0, ignored |
/// | 16 | 32 | EncContext: u32 n, 12-byte nonce, 16-byte tag |
/// | 48 | n | EncryptedBuffer |
/// | 48 + n | | data blobs: u32 type, u32 length, payload |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// Nonce and tag of the sealed state.
    pub enc_context: EncContext,
    /// The server's state, sealed; a host returns it unchanged.
    pub encrypted_buffer: Vec<u8>,
    /// Commands and requests from the server, responses and items from a host; same number, same order.
    pub blobs: Vec<Blob>,
}

/// What authenticates the sealed state (MS-HGSA 2.2.2.26; the split of its 32 bytes is our choice).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncContext {
    /// AES-GCM nonce.
    pub nonce: [u8; 12],
    /// AES-GCM tag.
    pub tag: [u8; 16],
}

/// One data blob (MS-HGSA 2.2.2.27).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Blob {
    /// Type 1 without content: the server asks for the boot log.
    BootLogWanted,
    /// Type 1: the boot log of the host (WBCL), without its length field.
    BootLog(Vec<u8>),
    /// Type 2 without content: the server asks for the device information.
    DeviceInfoWanted,
    /// Type 2: what kind of TPM the host has. Told by the host, proved by nothing.
    DeviceInfo(DeviceInfo),
    /// Type 3: a whole TPM command (from the server) or a whole TPM response (from a host).
    Tpm(Vec<u8>),
}

/// TPM_DEVICE_INFO (MS-HGSA 2.2.2.27.2) in structure version 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// 1: TPM 1.2, 2: TPM 2.0 (MS-HGSA 2.2.1.4).
    pub tpm_version: u32,
    /// 1: TPM 1.2 port, 2: TrustZone, 3: hardware, 4: emulator (MS-HGSA 2.2.1.5).
    pub interface_type: u32,
    /// Maker's version number.
    pub implementation_version: u32,
}

/// Why a context was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContextError {
    /// A field reaches past the end.
    #[error("the RTPM context ends inside a field")]
    Truncated,
    /// The first field is not the length of what came.
    #[error("the RTPM context's size field says {said}, and {came} bytes came")]
    Size {
        /// The size field.
        said: u32,
        /// The bytes at hand.
        came: usize,
    },
    /// Over [`MAX_CONTEXT`] bytes.
    #[error("the RTPM context is longer than allowed")]
    TooLong,
    /// Another version than 1.
    #[error("RTPM context version {0} is not known")]
    Version(u32),
    /// More than [`MAX_BLOBS`] blobs.
    #[error("the RTPM context announces {0} blobs, more than 8")]
    TooManyBlobs(u32),
    /// Bytes follow the last blob.
    #[error("bytes follow the last blob of the RTPM context")]
    Trailing,
    /// A type other than 1, 2 and 3.
    #[error("RTPM blob type {0} is not known")]
    BlobType(u32),
    /// A blob whose content contradicts its type or its bound.
    #[error("the content of an RTPM blob of type {0} is malformed or too long")]
    Blob(u32),
}

impl Context {
    /// Reads a whole context; every sum must be exact.
    pub fn parse(bytes: &[u8]) -> Result<Context, ContextError> {
        if bytes.len() > MAX_CONTEXT {
            return Err(ContextError::TooLong);
        }
        let mut rest = bytes;
        let said = take_u32(&mut rest)?;
        if usize::try_from(said) != Ok(bytes.len()) {
            return Err(ContextError::Size {
                said,
                came: bytes.len(),
            });
        }
        let version = take_u32(&mut rest)?;
        if version != VERSION {
            return Err(ContextError::Version(version));
        }
        let count = take_u32(&mut rest)?;
        if !usize::try_from(count).is_ok_and(|count| count <= MAX_BLOBS) {
            return Err(ContextError::TooManyBlobs(count));
        }
        let _reserved = take_u32(&mut rest)?;
        let length = take_u32(&mut rest)?;
        let enc_context = EncContext {
            nonce: take_array(&mut rest)?,
            tag: take_array(&mut rest)?,
        };
        let encrypted_buffer = take(&mut rest, length)?.to_vec();
        let mut blobs = Vec::new();
        for _ in 0..count {
            let kind = take_u32(&mut rest)?;
            let length = take_u32(&mut rest)?;
            blobs.push(Blob::parse(kind, take(&mut rest, length)?)?);
        }
        if !rest.is_empty() {
            return Err(ContextError::Trailing);
        }
        Ok(Context {
            enc_context,
            encrypted_buffer,
            blobs,
        })
    }

    /// The bytes that [`Context::parse`] reads. Content over the bounds is encoded as it is, and refused there.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; 4];
        put_u32(&mut out, VERSION);
        put_length(&mut out, self.blobs.len());
        put_u32(&mut out, 0);
        put_length(&mut out, self.encrypted_buffer.len());
        out.extend_from_slice(&self.enc_context.nonce);
        out.extend_from_slice(&self.enc_context.tag);
        out.extend_from_slice(&self.encrypted_buffer);
        for blob in &self.blobs {
            let (kind, payload) = blob.encode();
            put_u32(&mut out, kind);
            put_length(&mut out, payload.len());
            out.extend_from_slice(&payload);
        }
        let size = u32::try_from(out.len()).unwrap_or(u32::MAX).to_le_bytes();
        for (place, byte) in out.iter_mut().zip(size) {
            *place = byte;
        }
        out
    }
}

impl Blob {
    fn parse(kind: u32, payload: &[u8]) -> Result<Blob, ContextError> {
        let malformed = ContextError::Blob(kind);
        match kind {
            BOOT_LOG if payload.is_empty() => Ok(Blob::BootLogWanted),
            BOOT_LOG => {
                let mut rest = payload;
                let size = take_u32(&mut rest).map_err(|_| malformed)?;
                if usize::try_from(size) != Ok(rest.len()) || rest.len() > MAX_BOOT_LOG {
                    return Err(malformed);
                }
                Ok(Blob::BootLog(rest.to_vec()))
            }
            DEVICE_INFO if payload.is_empty() => Ok(Blob::DeviceInfoWanted),
            DEVICE_INFO => DeviceInfo::parse(payload).map(Blob::DeviceInfo).ok_or(malformed),
            TPM if payload.is_empty() || payload.len() > MAX_TPM => Err(malformed),
            TPM => Ok(Blob::Tpm(payload.to_vec())),
            unknown => Err(ContextError::BlobType(unknown)),
        }
    }

    fn encode(&self) -> (u32, Vec<u8>) {
        match self {
            Blob::BootLogWanted => (BOOT_LOG, Vec::new()),
            Blob::BootLog(log) => {
                let mut payload = Vec::with_capacity(log.len() + 4);
                put_length(&mut payload, log.len());
                payload.extend_from_slice(log);
                (BOOT_LOG, payload)
            }
            Blob::DeviceInfoWanted => (DEVICE_INFO, Vec::new()),
            Blob::DeviceInfo(info) => (DEVICE_INFO, info.encode().to_vec()),
            Blob::Tpm(message) => (TPM, message.clone()),
        }
    }
}

impl DeviceInfo {
    /// 16 bytes: structure version 1, then the three numbers.
    pub fn encode(&self) -> [u8; 16] {
        let mut out = [0; 16];
        let words = [1, self.tpm_version, self.interface_type, self.implementation_version];
        for (place, byte) in out.iter_mut().zip(words.iter().flat_map(|word| word.to_le_bytes())) {
            *place = byte;
        }
        out
    }

    fn parse(bytes: &[u8]) -> Option<DeviceInfo> {
        let mut rest = bytes;
        let mut next = || take_u32(&mut rest).ok();
        let (structure, tpm_version, interface_type, implementation_version) = (next()?, next()?, next()?, next()?);
        (structure == 1 && rest.is_empty()).then_some(DeviceInfo {
            tpm_version,
            interface_type,
            implementation_version,
        })
    }
}

/// Entry for a fuzzer: whatever parses must encode and parse to the same again.
pub fn fuzz(bytes: &[u8]) {
    if let Ok(context) = Context::parse(bytes) {
        assert!(
            Context::parse(&context.encode()) == Ok(context),
            "a context changed in its round trip"
        );
    }
}

fn take<'a>(rest: &mut &'a [u8], length: u32) -> Result<&'a [u8], ContextError> {
    let length = usize::try_from(length).map_err(|_| ContextError::Truncated)?;
    let (taken, left) = rest.split_at_checked(length).ok_or(ContextError::Truncated)?;
    *rest = left;
    Ok(taken)
}

fn take_array<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], ContextError> {
    let (taken, left) = rest.split_first_chunk::<N>().ok_or(ContextError::Truncated)?;
    *rest = left;
    Ok(*taken)
}

fn take_u32(rest: &mut &[u8]) -> Result<u32, ContextError> {
    take_array(rest).map(u32::from_le_bytes)
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// A length that does not fit becomes the largest one, which no reader accepts.
fn put_length(out: &mut Vec<u8>, length: usize) {
    put_u32(out, u32::try_from(length).unwrap_or(u32::MAX));
}

/// Most blobs in a context.
pub const MAX_BLOBS: usize = 8;
/// Longest boot log, in bytes.
pub const MAX_BOOT_LOG: usize = 512 * 1024;
/// Longest TPM command or response, in bytes.
pub const MAX_TPM: usize = 4096;
/// Longest context, in bytes: a boot log, the TPM messages and a sealed state.
pub const MAX_CONTEXT: usize = MAX_BOOT_LOG + MAX_BLOBS * (MAX_TPM + 8) + 8192;

const VERSION: u32 = 1;
const BOOT_LOG: u32 = 1;
const DEVICE_INFO: u32 = 2;
const TPM: u32 = 3;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn example() -> Context {
        Context {
            enc_context: EncContext {
                nonce: [0xa1; 12],
                tag: [0xb2; 16],
            },
            encrypted_buffer: vec![0xc3; 80],
            blobs: vec![Blob::Tpm(hex::decode("80010000000e0000017381010001").unwrap())],
        }
    }

    #[test]
    fn the_worked_example_encodes_to_its_bytes() {
        let expected = format!(
            "96000000010000000100000000000000{}{}{}{}{}",
            "50000000",
            "a1".repeat(12) + &"b2".repeat(16),
            "c3".repeat(80),
            "030000000e000000",
            "80010000000e0000017381010001"
        );
        assert_eq!(hex::encode(example().encode()), expected);
        let info = DeviceInfo {
            tpm_version: 2,
            interface_type: 4,
            implementation_version: 0,
        };
        assert_eq!(hex::encode(info.encode()), "01000000020000000400000000000000");
    }

    #[test]
    fn every_sum_must_be_exact() {
        let good = example().encode();
        let set = |at: usize, value: u32| {
            let mut bad = good.clone();
            bad[at..at + 4].copy_from_slice(&value.to_le_bytes());
            Context::parse(&bad).unwrap_err()
        };
        assert!(matches!(set(0, 0x95), ContextError::Size { .. }));
        assert_eq!(set(4, 2), ContextError::Version(2));
        assert_eq!(set(8, 0), ContextError::Trailing);
        assert_eq!(set(8, 2), ContextError::Truncated);
        assert_eq!(set(8, 9), ContextError::TooManyBlobs(9));
        assert_eq!(set(8, u32::MAX), ContextError::TooManyBlobs(u32::MAX));
        assert_eq!(set(16, u32::MAX), ContextError::Truncated);
        assert_eq!(set(16, 103), ContextError::Truncated);
        assert_eq!(set(128, 4), ContextError::BlobType(4));
        assert_eq!(set(132, u32::MAX), ContextError::Truncated);
        assert_eq!(set(132, 13), ContextError::Trailing);
        // The reserved field is ignored.
        let mut reserved = good.clone();
        reserved[12] = 7;
        assert_eq!(Context::parse(&reserved), Ok(example()));
        for length in 0..good.len() {
            assert!(Context::parse(&good[..length]).is_err());
        }
    }

    #[test]
    fn bounds_are_kept() {
        let with = |blob: Blob| {
            let mut context = example();
            context.blobs = vec![blob];
            Context::parse(&context.encode()).err()
        };
        assert_eq!(with(Blob::Tpm(vec![0; MAX_TPM])), None);
        assert_eq!(with(Blob::Tpm(vec![0; MAX_TPM + 1])), Some(ContextError::Blob(3)));
        assert_eq!(with(Blob::Tpm(Vec::new())), Some(ContextError::Blob(3)));
        assert_eq!(with(Blob::BootLog(vec![0; MAX_BOOT_LOG])), None);
        assert_eq!(
            with(Blob::BootLog(vec![0; MAX_BOOT_LOG + 1])),
            Some(ContextError::Blob(1))
        );
        assert_eq!(Context::parse(&vec![0; MAX_CONTEXT + 1]), Err(ContextError::TooLong));
    }

    fn blob() -> impl Strategy<Value = Blob> {
        prop_oneof![
            Just(Blob::BootLogWanted),
            Just(Blob::DeviceInfoWanted),
            proptest::collection::vec(any::<u8>(), 0..200).prop_map(Blob::BootLog),
            proptest::collection::vec(any::<u8>(), 1..200).prop_map(Blob::Tpm),
            any::<[u32; 3]>().prop_map(|[tpm_version, interface_type, implementation_version]| {
                Blob::DeviceInfo(DeviceInfo {
                    tpm_version,
                    interface_type,
                    implementation_version,
                })
            }),
        ]
    }

    proptest! {
        #[test]
        fn a_context_survives_its_encoding(
            nonce in any::<[u8; 12]>(),
            tag in any::<[u8; 16]>(),
            encrypted_buffer in proptest::collection::vec(any::<u8>(), 0..300),
            blobs in proptest::collection::vec(blob(), 0..=MAX_BLOBS),
        ) {
            let context = Context { enc_context: EncContext { nonce, tag }, encrypted_buffer, blobs };
            prop_assert_eq!(Context::parse(&context.encode()), Ok(context));
        }

        #[test]
        fn changed_bytes_never_panic(at in 0usize..150, value in any::<u8>(), cut in 0usize..150) {
            let mut bytes = example().encode();
            bytes[at] = value;
            fuzz(&bytes);
            fuzz(&bytes[..cut]);
        }
    }
}
