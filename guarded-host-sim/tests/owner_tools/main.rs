//! The owner's tools as a person uses them: the real program on real files, certificates made by
//! openssl, documents judged by xmllint, protectors opened by a real key protection service.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod desk;
mod guardians;
mod protectors;
mod service;
