//! Template disks, shielding data files and what is made of both: VMs whose secrets no administrator of
//! the fabric has seen.
//!
//! A template disk carries a volume signature catalogue ([`catalogue`], [`template`]): whoever made the template
//! has signed the hash of every block. A shielding data file ([`data_file`]) holds what its owner gives to the
//! VM and names the templates that the owner trusts ([`qualifier`]). A VBS store makes VMs of both ([`provision`]); when
//! their fabric is lost, their owner reaches them still ([`recovery`]). The formats of the product are not published; those here are
//! this project's and are described where they are read.

pub mod catalogue;
pub mod data_command;
pub mod data_file;
pub mod provision;
pub mod qualifier;
pub mod recovery;
pub(crate) mod recovery_command;
pub mod template;
pub mod template_command;
pub mod values;
