//! Tagged events of Windows (SIPA events, `wbcl.h`): the data of EV_EVENT_TAG records.
//!
//! A record's data is a sequence of tags, each `u32 id, u32 size, data`, little-endian; the data of
//! a container is again such a sequence. An id with bit 31 set is unmeasured and proves nothing.

use super::cursor::{Cursor, length32};

/// One tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Which event; constants in [`id`].
    pub id: u32,
    /// Its data; for a container, further tags.
    pub data: Vec<u8>,
}

/// Why bytes are not tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TagError {
    /// A tag runs past its container.
    #[error("a tagged event is cut off")]
    Truncated,
    /// Containers nest deeper than any real log does.
    #[error("tagged events nest deeper than {MAX_DEPTH} levels")]
    Depth,
}

impl Tag {
    /// A tag with these bytes.
    pub fn new(id: u32, data: impl Into<Vec<u8>>) -> Tag {
        Tag { id, data: data.into() }
    }

    /// A one-byte truth value.
    pub fn boolean(id: u32, value: bool) -> Tag {
        Tag::new(id, [u8::from(value)])
    }

    /// A 32-bit value.
    pub fn u32(id: u32, value: u32) -> Tag {
        Tag::new(id, value.to_le_bytes())
    }

    /// A 64-bit value.
    pub fn u64(id: u32, value: u64) -> Tag {
        Tag::new(id, value.to_le_bytes())
    }

    /// A container of other tags.
    pub fn container(id: u32, tags: &[Tag]) -> Tag {
        Tag::new(id, encode_tags(tags))
    }

    /// True when the data is a sequence of tags.
    pub fn is_container(&self) -> bool {
        self.id & id::AGGREGATION != 0
    }

    /// False when bit 31 of the id marks the tag as unmeasured.
    pub fn is_measured(&self) -> bool {
        self.id & id::NON_MEASURED == 0
    }

    /// The tags of a container.
    pub fn nested(&self) -> Result<Vec<Tag>, TagError> {
        parse_tags(&self.data)
    }

    /// The data as an unsigned integer of 1, 4 or 8 bytes; other widths are none of the documented values.
    pub fn integer(&self) -> Option<u64> {
        match self.data.len() {
            1 => self.data.first().map(|b| u64::from(*b)),
            4 => Some(u64::from(u32::from_le_bytes(self.data.as_slice().try_into().ok()?))),
            8 => Some(u64::from_le_bytes(self.data.as_slice().try_into().ok()?)),
            _ => None,
        }
    }
}

/// The bytes as a sequence of tags, containers unopened. Nothing may be left over.
pub fn parse_tags(bytes: &[u8]) -> Result<Vec<Tag>, TagError> {
    let mut cursor = Cursor::new(bytes);
    let mut tags = Vec::new();
    while !cursor.is_empty() {
        let id = cursor.u32().ok_or(TagError::Truncated)?;
        let data = cursor.block32().ok_or(TagError::Truncated)?.to_vec();
        tags.push(Tag { id, data });
    }
    Ok(tags)
}

/// Tags one after another.
pub fn encode_tags(tags: &[Tag]) -> Vec<u8> {
    let mut out = Vec::new();
    for tag in tags {
        out.extend_from_slice(&tag.id.to_le_bytes());
        out.extend_from_slice(&length32(tag.data.len()));
        out.extend_from_slice(&tag.data);
    }
    out
}

/// Every tag that is no container, in order, with all containers opened. Tags that are unmeasured,
/// or lie in an unmeasured container, are left out.
pub fn measured_leaves(bytes: &[u8]) -> Result<Vec<Tag>, TagError> {
    let mut leaves = Vec::new();
    collect_leaves(bytes, 0, &mut leaves)?;
    Ok(leaves)
}

fn collect_leaves(bytes: &[u8], depth: usize, leaves: &mut Vec<Tag>) -> Result<(), TagError> {
    if depth > MAX_DEPTH {
        return Err(TagError::Depth);
    }
    for tag in parse_tags(bytes)?.into_iter().filter(Tag::is_measured) {
        match tag.is_container() {
            true => collect_leaves(&tag.data, depth + 1, leaves)?,
            false => leaves.push(tag),
        }
    }
    Ok(())
}

/// Data of [`id::SI_POLICY`]: a code-integrity policy that the loader put into force.
///
/// Layout: u64 version, u16 name bytes, u16 hash algorithm (TPM identifier), u32 digest bytes,
/// name (UTF-16LE, zero-terminated), digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiPolicy {
    /// Version: four 16-bit parts, the highest first.
    pub version: u64,
    /// File name, without the zero at its end. Chosen by whoever installed the policy.
    pub name: String,
    /// TPM identifier of the hash algorithm; 0x000B for SHA-256.
    pub algorithm: u16,
    /// Digest of the policy. The signature of a signed policy is not part of it.
    pub digest: Vec<u8>,
}

impl SiPolicy {
    /// The whole of `bytes`; nothing may be left over.
    pub fn parse(bytes: &[u8]) -> Option<SiPolicy> {
        let mut cursor = Cursor::new(bytes);
        let version = cursor.u64()?;
        let name_bytes = usize::from(cursor.u16()?);
        let algorithm = cursor.u16()?;
        let digest_bytes = usize::try_from(cursor.u32()?).ok()?;
        let name = utf16(cursor.take(name_bytes)?)?;
        let digest = cursor.take(digest_bytes)?.to_vec();
        cursor.is_empty().then(|| SiPolicy {
            version,
            name: name.strip_suffix('\0').unwrap_or(&name).to_owned(),
            algorithm,
            digest,
        })
    }

    /// The bytes, with the zero after the name. A name over 65,535 bytes is cut.
    pub fn encode(&self) -> Vec<u8> {
        let name: Vec<u8> = self
            .name
            .encode_utf16()
            .take(32_766)
            .chain([0])
            .flat_map(u16::to_le_bytes)
            .collect();
        let mut out = self.version.to_le_bytes().to_vec();
        out.extend_from_slice(&u16::try_from(name.len()).unwrap_or(u16::MAX).to_le_bytes());
        out.extend_from_slice(&self.algorithm.to_le_bytes());
        out.extend_from_slice(&length32(self.digest.len()));
        out.extend_from_slice(&name);
        out.extend_from_slice(&self.digest);
        out
    }

    /// The version as people write it.
    pub fn version_text(&self) -> String {
        let [a, b, c, d, e, f, g, h] = self.version.to_be_bytes();
        let part = |hi, lo| u16::from_be_bytes([hi, lo]);
        format!("{}.{}.{}.{}", part(a, b), part(c, d), part(e, f), part(g, h))
    }
}

/// UTF-16LE text; none when the length is odd or a surrogate stands alone.
pub(crate) fn utf16(bytes: &[u8]) -> Option<String> {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let units: Vec<u16> = pairs.iter().map(|pair| u16::from_le_bytes(*pair)).collect();
    rest.is_empty().then(|| String::from_utf16(&units).ok())?
}

/// Identifiers of tagged events, as `wbcl.h` numbers them.
pub mod id {
    /// Bit 30: the data is a sequence of tags.
    pub const AGGREGATION: u32 = 0x4000_0000;
    /// Bit 31: not measured.
    pub const NON_MEASURED: u32 = 0x8000_0000;

    macro_rules! ids {
        ($($name:ident = $value:literal, $doc:literal;)*) => {
            $(#[doc = $doc] pub const $name: u32 = $value;)*

            /// The name without its `SIPAEVENT_` prefix, for people.
            pub fn name(id: u32) -> Option<&'static str> {
                match id {
                    $($name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        };
    }

    ids! {
        TRUSTBOUNDARY = 0x4001_0001, "Container: what one boot application measured.";
        ELAM_AGGREGATION = 0x4001_0002, "Container: early-launch antimalware.";
        LOADEDMODULE_AGGREGATION = 0x4001_0003, "Container: one loaded module.";
        TRUSTPOINT_AGGREGATION = 0xC001_0004, "Container, unmeasured: quotes that Windows took.";
        KSR_AGGREGATION = 0x4001_0005, "Container: kernel soft restart.";
        KSR_SIGNED_MEASUREMENT_AGGREGATION = 0x4001_0006, "Container: signed measurements of a kernel soft restart.";
        ERROR_FIRMWAREFAILURE = 0x0003_0001, "A measurement call into firmware failed.";
        ERROR_INTERNALFAILURE = 0x8003_0002, "Unmeasured: an internal failure.";
        INFORMATION = 0x0002_0001, "Free information.";
        BOOTCOUNTER = 0x0002_0002, "u64: boots counted by the TPM.";
        TRANSFER_CONTROL = 0x0002_0003, "u32: where control goes next; see the `transfer` values.";
        APPLICATION_RETURN = 0x0002_0004, "A boot application returned.";
        BITLOCKER_UNLOCK = 0x0002_0005, "u32 flags: how a volume was unlocked; see the `unlock` values.";
        EVENTCOUNTER = 0x0002_0006, "u64: counter of security events.";
        COUNTERID = 0x0002_0007, "u64: identity of the counter.";
        MORBIT_NOT_CANCELABLE = 0x0002_0008, "bool: memory overwrite cannot be cancelled.";
        APPLICATION_SVN = 0x0002_0009, "Security version of the boot application.";
        SVN_CHAIN_STATUS = 0x0002_000A, "State of the security version chain.";
        MORBIT_API_STATUS = 0x0002_000B, "State of the memory overwrite interface.";
        BOOTDEBUGGING = 0x0004_0001, "bool: boot debugging.";
        BOOT_REVOCATION_LIST = 0x0004_0002, "Digest of the boot revocation list.";
        OSKERNELDEBUG = 0x0005_0001, "bool: kernel debugging.";
        CODEINTEGRITY = 0x0005_0002, "bool: code integrity checks.";
        TESTSIGNING = 0x0005_0003, "bool: test-signed code is accepted.";
        DATAEXECUTIONPREVENTION = 0x0005_0004, "u64: data execution prevention.";
        SAFEMODE = 0x0005_0005, "bool: safe mode.";
        WINPE = 0x0005_0006, "bool: pre-installation environment.";
        PHYSICALADDRESSEXTENSION = 0x0005_0007, "u64: physical address extension.";
        OSDEVICE = 0x0005_0008, "The device that the system starts from.";
        SYSTEMROOT = 0x0005_0009, "Path of the system.";
        HYPERVISOR_LAUNCH_TYPE = 0x0005_000A, "u64: hypervisor launch, 0 none.";
        HYPERVISOR_PATH = 0x0005_000B, "Path of the hypervisor.";
        HYPERVISOR_IOMMU_POLICY = 0x0005_000C, "u64: the hypervisor's use of the IOMMU.";
        HYPERVISOR_DEBUG = 0x0005_000D, "bool: hypervisor debugging; such a debugger reads VSM memory.";
        DRIVER_LOAD_POLICY = 0x0005_000E, "u32: which boot drivers are loaded.";
        SI_POLICY = 0x0005_000F, "A code-integrity policy in force.";
        HYPERVISOR_MMIO_NX_POLICY = 0x0005_0010, "u64: no execution from device memory.";
        HYPERVISOR_MSR_FILTER_POLICY = 0x0005_0011, "u64: filter of model-specific registers.";
        VSM_LAUNCH_TYPE = 0x0005_0012, "u64: virtual secure mode launch, 0 none.";
        OS_REVOCATION_LIST = 0x0005_0013, "Digest of the system's revocation list.";
        SMT_STATUS = 0x0005_0014, "u32: simultaneous multithreading.";
        VSM_IDK_INFO = 0x0005_0020, "Public VSM identity key for encryption.";
        FLIGHTSIGNING = 0x0005_0021, "bool: pre-release signatures are accepted.";
        PAGEFILE_ENCRYPTION_ENABLED = 0x0005_0022, "bool: page file encryption.";
        VSM_IDKS_INFO = 0x0005_0023, "Public VSM identity key for signing.";
        HIBERNATION_DISABLED = 0x0005_0024, "bool: hibernation is off.";
        DUMPS_DISABLED = 0x0005_0025, "bool: memory dumps are off.";
        DUMP_ENCRYPTION_ENABLED = 0x0005_0026, "bool: memory dumps are encrypted.";
        DUMP_ENCRYPTION_KEY_DIGEST = 0x0005_0027, "SHA-256 of the dump encryption key.";
        LSAISO_CONFIG = 0x0005_0028, "u32: Credential Guard.";
        SBCP_INFO = 0x0005_0029, "Secure Boot custom policy.";
        HYPERVISOR_BOOT_DMA_PROTECTION = 0x0005_0030, "bool: DMA protection during boot.";
        NOAUTHORITY = 0x0006_0001, "A module without authority.";
        AUTHORITYPUBKEY = 0x0006_0002, "Public key of a boot authority.";
        FILEPATH = 0x0007_0001, "Path of a module, UTF-16.";
        IMAGESIZE = 0x0007_0002, "Size of a module.";
        HASHALGORITHMID = 0x0007_0003, "u32: hash algorithm of a module.";
        AUTHENTICODEHASH = 0x0007_0004, "Authenticode hash of a module.";
        AUTHORITYISSUER = 0x0007_0005, "Issuer of a module's signer.";
        AUTHORITYSERIAL = 0x0007_0006, "Serial of a module's signer.";
        IMAGEBASE = 0x0007_0007, "u64: where a module was loaded.";
        AUTHORITYPUBLISHER = 0x0007_0008, "Publisher of a module.";
        AUTHORITYSHA1THUMBPRINT = 0x0007_0009, "Thumbprint of a module's signer.";
        IMAGEVALIDATED = 0x0007_000A, "bool: the module's signature was checked.";
        MODULE_SVN = 0x0007_000B, "Security version of a module.";
        QUOTE = 0x8008_0001, "Unmeasured: a quote.";
        QUOTESIGNATURE = 0x8008_0002, "Unmeasured: its signature.";
        AIKID = 0x8008_0003, "Unmeasured: name of the quoting key.";
        AIKPUBDIGEST = 0x8008_0004, "Unmeasured: digest of the quoting key.";
        ELAM_KEYNAME = 0x0009_0001, "Name of the antimalware driver's key.";
        ELAM_CONFIGURATION = 0x0009_0002, "Its configuration.";
        ELAM_POLICY = 0x0009_0003, "Its policy.";
        ELAM_MEASURED = 0x0009_0004, "What it measured.";
        VBS_VSM_REQUIRED = 0x000A_0001, "bool: VBS requires VSM.";
        VBS_SECUREBOOT_REQUIRED = 0x000A_0002, "bool: VBS requires Secure Boot.";
        VBS_IOMMU_REQUIRED = 0x000A_0003, "bool: VBS requires DMA protection by an IOMMU.";
        VBS_MMIO_NX_REQUIRED = 0x000A_0004, "bool: VBS requires no execution from device memory.";
        VBS_MSR_FILTERING_REQUIRED = 0x000A_0005, "bool: VBS requires filtered model-specific registers.";
        VBS_MANDATORY_ENFORCEMENT = 0x000A_0006, "bool: without its requirements VBS stops the boot.";
        VBS_HVCI_POLICY = 0x000A_0007, "u64: code integrity enforced by the hypervisor, 0 off.";
        VBS_MICROSOFT_BOOT_CHAIN_REQUIRED = 0x000A_0008, "bool: only Microsoft's boot chain.";
        VBS_DUMP_USES_AMEROOT = 0x000A_0009, "bool: dumps under the AME root.";
        VBS_VSM_NOSECRETS_ENFORCED = 0x000A_000A, "bool: VSM holds no secrets.";
        KSR_SIGNATURE = 0x000B_0001, "Signature of a kernel soft restart.";
        DRTM_STATE_AUTH = 0x000C_0001, "Dynamic root of trust: state authority.";
        DRTM_SMM_LEVEL = 0x000C_0002, "Dynamic root of trust: SMM isolation level.";
        DRTM_AMD_SMM_HASH = 0x000C_0003, "Dynamic root of trust: AMD SMM hash.";
        DRTM_AMD_SMM_SIGNER_KEY = 0x000C_0004, "Dynamic root of trust: AMD SMM signer.";
    }
}

/// Values of [`id::TRANSFER_CONTROL`].
pub mod transfer {
    /// Nowhere.
    pub const NONE: u64 = 0;
    /// To the loader: a full start.
    pub const OS_LOADER: u64 = 1;
    /// To a hibernated system.
    pub const RESUME: u64 = 2;
    /// To a utility of the vendor.
    pub const UTILITY: u64 = 3;
    /// To something unsigned.
    pub const NO_SIGNATURE_CHECK: u64 = 4;
    /// To the hypervisor.
    pub const HYPERVISOR: u64 = 5;
}

/// Flags of [`id::BITLOCKER_UNLOCK`].
pub mod unlock {
    /// A key kept from an earlier stage.
    pub const CACHED: u64 = 0x1;
    /// A key on other media.
    pub const MEDIA: u64 = 0x2;
    /// The TPM.
    pub const TPM: u64 = 0x4;
    /// A PIN.
    pub const PIN: u64 = 0x10;
    /// An external key.
    pub const EXTERNAL: u64 = 0x20;
    /// A recovery password.
    pub const RECOVERY: u64 = 0x40;
    /// A passphrase.
    pub const PASSPHRASE: u64 = 0x80;
}

/// How deep containers may nest. Real logs reach two.
pub const MAX_DEPTH: usize = 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tag() -> impl Strategy<Value = Tag> {
        (any::<u32>(), proptest::collection::vec(any::<u8>(), 0..40)).prop_map(|(id, data)| Tag { id, data })
    }

    proptest! {
        #[test]
        fn tags_survive_their_encoding(tags in proptest::collection::vec(tag(), 0..6)) {
            prop_assert_eq!(parse_tags(&encode_tags(&tags)).unwrap(), tags);
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = measured_leaves(&bytes);
            let _ = SiPolicy::parse(&bytes);
        }

        #[test]
        fn a_policy_survives_its_encoding(version in any::<u64>(), name in "[a-zA-Z. ]{0,20}", digest in proptest::collection::vec(any::<u8>(), 0..64)) {
            let policy = SiPolicy { version, name, algorithm: 0x000B, digest };
            prop_assert_eq!(SiPolicy::parse(&policy.encode()).unwrap(), policy);
        }
    }

    #[test]
    fn containers_open_and_unmeasured_tags_stay_out() {
        let inner = [Tag::boolean(id::BOOTDEBUGGING, true), Tag::new(id::QUOTE, *b"q")];
        let hidden = Tag::container(id::TRUSTPOINT_AGGREGATION, &[Tag::boolean(id::TESTSIGNING, false)]);
        let outer = [
            Tag::container(id::TRUSTBOUNDARY, &inner),
            hidden,
            Tag::u32(id::TRANSFER_CONTROL, 1),
        ];
        let leaves = measured_leaves(&encode_tags(&outer)).unwrap();
        let ids: Vec<u32> = leaves.iter().map(|tag| tag.id).collect();
        assert_eq!(ids, [id::BOOTDEBUGGING, id::TRANSFER_CONTROL]);
    }

    #[test]
    fn endless_nesting_is_refused() {
        let mut tag = Tag::boolean(id::TESTSIGNING, false);
        for _ in 0..MAX_DEPTH {
            tag = Tag::container(id::TRUSTBOUNDARY, &[tag]);
        }
        assert!(measured_leaves(&encode_tags(std::slice::from_ref(&tag))).is_ok());
        let tag = Tag::container(id::TRUSTBOUNDARY, &[tag]);
        assert_eq!(measured_leaves(&encode_tags(&[tag])), Err(TagError::Depth));
    }

    #[test]
    fn a_measured_policy_reads_as_published() {
        let bytes = hex::decode("0000000000000a001a000b00200000005300690050006f006c006900630079002e00700037006200000053ecf18ecb76bb22f0cecf97ab824b4fd9a36e50892995553c9fb8eebc4648f3").unwrap();
        let policy = SiPolicy::parse(&bytes).unwrap();
        assert_eq!(policy.name, "SiPolicy.p7b");
        assert_eq!(policy.version_text(), "10.0.0.0");
        assert_eq!(policy.encode(), bytes);
    }
}
