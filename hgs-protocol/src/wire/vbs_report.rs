//! VBS reports (ntenclv.h, packed, little-endian): a statement about an enclave or trustlet, in a package with the
//! signature of the VSM signing key over the statement. A CA trustlet's report (VSM_SK_REPORT) has this form here.
//!
//! Reads bytes and verifies nothing. Hyper-V's report about a whole VM is another format.

use super::cursor::{Cursor, length32};

/// Why bytes are not a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VbsReportError {
    /// They end before the fields do.
    #[error("the VBS report is cut off")]
    Truncated,
    /// Over [`MAX_VBS_REPORT`] bytes.
    #[error("the VBS report is longer than 64 KiB")]
    TooLong,
    /// A size that is not that of what it counts.
    #[error("the VBS report's sizes do not add up")]
    Size,
    /// Package or statement of a version other than 1, or a reserved field that is not 0.
    #[error("the VBS report is of an unknown version")]
    Version,
    /// Not SHA-256 with RSA-PSS, the only scheme there is.
    #[error("the VBS report is signed by the unknown scheme {0}")]
    Scheme(u32),
}

/// A package: header of 24 bytes, signed statement, signature.
///
/// Header: u32 size of the whole, u32 version 1, u32 scheme 1 (RSA-PSS, SHA-256, salt of 32 bytes), u32 size of the
/// statement, u32 size of the signature, u32 reserved 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VbsReportPackage {
    /// The bytes that the signature covers; [`VbsReport::parse`] reads them.
    pub statement: Vec<u8>,
    /// By the VSM signing key, over the statement alone.
    pub signature: Vec<u8>,
}

impl VbsReportPackage {
    /// Reads a whole package; no byte may be left over.
    pub fn parse(bytes: &[u8]) -> Result<VbsReportPackage, VbsReportError> {
        if bytes.len() > MAX_VBS_REPORT {
            return Err(VbsReportError::TooLong);
        }
        let mut cursor = Cursor::new(bytes);
        let mut field = || cursor.u32().ok_or(VbsReportError::Truncated);
        let (size, version, scheme) = (field()?, field()?, field()?);
        let (statement, signature, reserved) = (field()?, field()?, field()?);
        if (version, reserved) != (1, 0) {
            return Err(VbsReportError::Version);
        }
        if scheme != RSA_PSS_SHA256 {
            return Err(VbsReportError::Scheme(scheme));
        }
        let mut part = |length: u32| {
            let bytes = usize::try_from(length).ok().and_then(|length| cursor.take(length));
            bytes.map(<[u8]>::to_vec).ok_or(VbsReportError::Truncated)
        };
        let package = VbsReportPackage {
            statement: part(statement)?,
            signature: part(signature)?,
        };
        match cursor.is_empty() && usize::try_from(size) == Ok(bytes.len()) {
            true => Ok(package),
            false => Err(VbsReportError::Size),
        }
    }

    /// What [`VbsReportPackage::parse`] reads.
    pub fn encode(&self) -> Vec<u8> {
        let size = HEADER + self.statement.len() + self.signature.len();
        let fields = [
            length32(size),
            1u32.to_le_bytes(),
            RSA_PSS_SHA256.to_le_bytes(),
            length32(self.statement.len()),
            length32(self.signature.len()),
            [0; 4],
        ];
        [fields.concat().as_slice(), &self.statement, &self.signature].concat()
    }
}

/// The signed statement: 224 bytes, then blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VbsReport {
    /// What the enclave put in: by custom a SHA-256 of its public key in the first 32 bytes.
    pub enclave_data: [u8; 64],
    /// Who launched it.
    pub owner_id: [u8; 32],
    /// Hash of its image.
    pub unique_id: [u8; 32],
    /// Hash of its signer.
    pub author_id: [u8; 32],
    /// Chosen by its author.
    pub family_id: [u8; 16],
    /// Chosen by its author.
    pub image_id: [u8; 16],
    /// Security version of the enclave.
    pub enclave_svn: u32,
    /// Security version of the secure kernel.
    pub secure_kernel_svn: u32,
    /// Security version of the platform.
    pub platform_svn: u32,
    /// See [`VbsReport::is_debuggable`].
    pub flags: u32,
    /// Signing level.
    pub signing_level: u32,
    /// 0x10 for VBS; 0 in old reports.
    pub enclave_type: u32,
    /// Variable blocks, in order.
    pub blocks: Vec<VbsReportBlock>,
}

/// A variable block: u32 type, u32 size of the whole block, data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VbsReportBlock {
    /// 1: a loaded module.
    pub data_type: u32,
    /// Without the header of 8 bytes.
    pub data: Vec<u8>,
}

impl VbsReport {
    /// Reads a whole statement; no byte may be left over.
    pub fn parse(bytes: &[u8]) -> Result<VbsReport, VbsReportError> {
        let mut cursor = Cursor::new(bytes);
        let size = cursor.u32().ok_or(VbsReportError::Truncated)?;
        if cursor.u32().ok_or(VbsReportError::Truncated)? != 1 {
            return Err(VbsReportError::Version);
        }
        if usize::try_from(size) != Ok(bytes.len()) {
            return Err(VbsReportError::Size);
        }
        VbsReport::read(&mut cursor).ok_or(VbsReportError::Truncated)
    }

    /// Everything after size and version.
    fn read(cursor: &mut Cursor<'_>) -> Option<VbsReport> {
        let mut report = VbsReport {
            enclave_data: cursor.array()?,
            owner_id: cursor.array()?,
            unique_id: cursor.array()?,
            author_id: cursor.array()?,
            family_id: cursor.array()?,
            image_id: cursor.array()?,
            enclave_svn: cursor.u32()?,
            secure_kernel_svn: cursor.u32()?,
            platform_svn: cursor.u32()?,
            flags: cursor.u32()?,
            signing_level: cursor.u32()?,
            enclave_type: cursor.u32()?,
            blocks: Vec::new(),
        };
        while !cursor.is_empty() {
            let data_type = cursor.u32()?;
            let length = usize::try_from(cursor.u32()?).ok()?.checked_sub(BLOCK_HEADER)?;
            let data = cursor.take(length)?.to_vec();
            report.blocks.push(VbsReportBlock { data_type, data });
        }
        Some(report)
    }

    /// What [`VbsReport::parse`] reads.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = [0; 4].to_vec();
        out.extend_from_slice(&1u32.to_le_bytes());
        out.extend_from_slice(&self.enclave_data);
        for id in [&self.owner_id, &self.unique_id, &self.author_id] {
            out.extend_from_slice(id);
        }
        out.extend_from_slice(&self.family_id);
        out.extend_from_slice(&self.image_id);
        for number in [
            self.enclave_svn,
            self.secure_kernel_svn,
            self.platform_svn,
            self.flags,
            self.signing_level,
            self.enclave_type,
        ] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for block in &self.blocks {
            out.extend_from_slice(&block.data_type.to_le_bytes());
            out.extend_from_slice(&length32(block.data.len() + BLOCK_HEADER));
            out.extend_from_slice(&block.data);
        }
        let size = length32(out.len());
        for (to, from) in out.iter_mut().zip(size) {
            *to = from;
        }
        out
    }

    /// True when a debugger can, or could, look into the enclave: flag 1 full debug, 2 dynamic debugging enabled,
    /// 4 dynamic debugging active.
    pub fn is_debuggable(&self) -> bool {
        self.flags & 7 != 0
    }
}

/// Entry for fuzzing: what parses encodes to the same bytes.
pub fn fuzz(bytes: &[u8]) {
    if let Ok(package) = VbsReportPackage::parse(bytes) {
        assert_eq!(package.encode(), bytes);
        let _ = VbsReport::parse(&package.statement);
    }
    if let Ok(report) = VbsReport::parse(bytes) {
        assert_eq!(report.encode(), bytes);
    }
}

/// The largest package read, in bytes; a real one has about 1400.
pub const MAX_VBS_REPORT: usize = 64 * 1024;
const HEADER: usize = 24;
const BLOCK_HEADER: usize = 8;
const RSA_PSS_SHA256: u32 = 1;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    prop_compose! {
        fn report()(
            enclave_data in any::<[[u8; 32]; 2]>(),
            [owner_id, unique_id, author_id] in any::<[[u8; 32]; 3]>(),
            [family_id, image_id] in any::<[[u8; 16]; 2]>(),
            numbers in any::<[u32; 6]>(),
            blocks in proptest::collection::vec((any::<u32>(), proptest::collection::vec(any::<u8>(), 0..40)), 0..5),
        ) -> VbsReport {
            let [enclave_svn, secure_kernel_svn, platform_svn, flags, signing_level, enclave_type] = numbers;
            VbsReport {
                enclave_data: enclave_data.concat().try_into().unwrap(),
                owner_id, unique_id, author_id, family_id, image_id,
                enclave_svn, secure_kernel_svn, platform_svn, flags, signing_level, enclave_type,
                blocks: blocks.into_iter().map(|(data_type, data)| VbsReportBlock { data_type, data }).collect(),
            }
        }
    }

    proptest! {
        #[test]
        fn a_report_survives_its_encoding(report in report(), signature in proptest::collection::vec(any::<u8>(), 0..300)) {
            let statement = report.encode();
            prop_assert_eq!(VbsReport::parse(&statement), Ok(report));
            let package = VbsReportPackage { statement, signature };
            let bytes = package.encode();
            prop_assert_eq!(VbsReportPackage::parse(&bytes), Ok(package));
        }

        #[test]
        fn no_byte_more_or_less_and_one_encoding(report in report(), at in any::<prop::sample::Index>(), value: u8) {
            let package = VbsReportPackage { statement: report.encode(), signature: vec![7; 256] };
            for bytes in [package.encode(), package.statement] {
                let at = at.index(bytes.len());
                prop_assert!(VbsReportPackage::parse(&bytes[..at]).is_err() && VbsReport::parse(&bytes[..at]).is_err());
                let longer = [bytes.as_slice(), &[0]].concat();
                prop_assert!(VbsReportPackage::parse(&longer).is_err() && VbsReport::parse(&longer).is_err());
                let mut changed = bytes;
                changed[at] = value;
                fuzz(&changed);
            }
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            fuzz(&bytes);
        }
    }

    #[test]
    fn the_documented_offsets_come_out_and_each_fault_has_its_name() {
        let report = VbsReport {
            enclave_data: [1; 64],
            owner_id: [2; 32],
            unique_id: [3; 32],
            author_id: [4; 32],
            family_id: [5; 16],
            image_id: [6; 16],
            enclave_svn: 7,
            secure_kernel_svn: 8,
            platform_svn: 9,
            flags: 0,
            signing_level: 10,
            enclave_type: 0x10,
            blocks: vec![VbsReportBlock {
                data_type: 1,
                data: vec![11; 136],
            }],
        };
        assert!(!report.is_debuggable());
        let statement = report.encode();
        assert_eq!(statement.len(), 224 + 144);
        for (at, byte) in [
            (8, 1),
            (72, 2),
            (104, 3),
            (136, 4),
            (168, 5),
            (184, 6),
            (200, 7),
            (208, 9),
            (220, 0x10),
        ] {
            assert_eq!(statement[at], byte, "{at}");
        }
        assert_eq!(statement[224..232], [1, 0, 0, 0, 144, 0, 0, 0]);
        let package = VbsReportPackage {
            statement,
            signature: vec![0; 256],
        };
        let bytes = package.encode();
        let refused = |at: usize, value: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            let package = VbsReportPackage::parse(&bytes)?;
            VbsReport::parse(&package.statement).map(drop)
        };
        assert_eq!(refused(0, 1), Err(VbsReportError::Size));
        assert_eq!(refused(4, 2), Err(VbsReportError::Version));
        assert_eq!(refused(8, 2), Err(VbsReportError::Scheme(2)));
        assert_eq!(refused(15, 0xFF), Err(VbsReportError::Truncated));
        assert_eq!(refused(17, 0), Err(VbsReportError::Size));
        assert_eq!(refused(20, 1), Err(VbsReportError::Version));
        assert_eq!(refused(24, 0), Err(VbsReportError::Size), "of the statement");
        assert_eq!(refused(28, 2), Err(VbsReportError::Version));
        assert_eq!(
            refused(24 + 228, 7),
            Err(VbsReportError::Truncated),
            "a block smaller than its header"
        );
        assert_eq!(
            refused(24 + 228, 145),
            Err(VbsReportError::Truncated),
            "a block past the end"
        );
        assert_eq!(
            VbsReportPackage::parse(&vec![0; MAX_VBS_REPORT + 1]),
            Err(VbsReportError::TooLong)
        );
    }
}
