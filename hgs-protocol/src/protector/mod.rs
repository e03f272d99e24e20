//! Key protectors (MS-KPS 2.2.2.3): created, verified, opened and rolled by one module that owner,
//! host and key protection service share.
//!
//! `KeyProtector` is what a document says, `ChainedProtector` one whose signatures hold,
//! `OpenedProtector` one whose transport key is known and confirmed. Nobody can roll or release
//! what is not opened.

mod access;
mod cache;
mod chain;
mod create;
mod document;
mod examine;
mod guardian;
mod metadata;
mod open;
mod payload;
mod release;
pub mod suite;
#[cfg(test)]
mod tests;
mod token;

pub use access::{AccessError, Revoked};
pub use cache::ChainCache;
pub use chain::{ChainedProtector, VerifyError, WrappingError, WrappingFault};
pub use document::{KeyProtector, ProtectorError, WrappingId, WrappingView};
pub use examine::{Examination, ExaminedWrapping};
pub use guardian::{Certificate, Guardian, GuardianError, GuardianKeys, KeyPair, KeyPurpose};
pub use metadata::{Metadata, MetadataError};
pub use open::{OpenError, OpenedProtector, RolledProtector};
pub use payload::{Payload, PayloadError, PayloadVersion};
pub use release::{
    OpenedRelease, OpensTransferKey, Release, ReleaseError, RollError, check_roll, open_release, seal_for_oneself,
    seal_release, seal_release_by,
};
pub use token::TokenKey;

/// Namespace of protectors, metadata and their cryptographic types.
pub const NS_PROTECTOR: &str = "http://schemas.microsoft.com/kps/2014/07";
/// Most wrappings of one protector.
pub const MAX_WRAPPINGS: usize = 256;
/// Longest protector document in bytes.
pub const MAX_PROTECTOR: usize = 4 << 20;

/// Entry for fuzzing: reads hostile bytes as a protector and checks its signatures.
pub fn fuzz_protector(bytes: &[u8]) {
    if let Ok(protector) = KeyProtector::parse(bytes) {
        let again = KeyProtector::parse(&protector.to_xml());
        assert!(again.is_ok(), "what was read can be written and read again");
        let examined = protector.examine();
        let faultless = examined.is_faultless();
        drop(examined);
        assert_eq!(faultless, protector.verify().is_ok(), "one judgement, told in two ways");
    }
}
