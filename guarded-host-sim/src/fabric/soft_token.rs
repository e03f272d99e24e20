//! PKCS#11 tokens in software (SoftHSM) for a fabric's key protection services: their private keys are made
//! in a token and lie nowhere else.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use hgs_protocol::env::{OsRandom, Random};
use zeroize::Zeroizing;

use super::service::write_private;
use crate::{
    child::{Output, Plan},
    swtpm::make_private_dir,
};

/// Makes tokens. Exists only where SoftHSM's module was found.
#[derive(Clone, Debug)]
pub struct SoftTokens {
    module: PathBuf,
}

/// One service's token, and how the service gets at it.
#[derive(Clone, Debug)]
pub(super) struct SoftToken {
    module: PathBuf,
    folder: PathBuf,
}

impl SoftTokens {
    /// With the PKCS#11 module at `module`, or SoftHSM's where Debian and its kin install it.
    pub fn find(module: Option<&Path>) -> anyhow::Result<SoftTokens> {
        if let Some(module) = module {
            let module =
                fs::canonicalize(module).with_context(|| format!("there is no PKCS#11 module {}", module.display()))?;
            return Ok(SoftTokens { module });
        }
        let multiarch = format!("/usr/lib/{}-linux-gnu/softhsm", std::env::consts::ARCH);
        let mut folders = [&multiarch, "/usr/lib/softhsm", "/usr/lib64/softhsm"]
            .map(Path::new)
            .into_iter();
        match folders.find_map(|folder| Some(folder.join(MODULE)).filter(|path| path.is_file())) {
            Some(module) => Ok(SoftTokens { module }),
            None => bail!(
                "SoftHSM's module {MODULE} is not installed: install the package softhsm2, or say where the module is \
                 with --pkcs11-module FILE"
            ),
        }
    }

    /// Makes a token in `folder` (absolute), unless there is one. The folder then holds `softhsm2.conf`,
    /// the two PINs in files of their own, and the token's own store.
    pub(super) fn make(&self, folder: &Path) -> anyhow::Result<SoftToken> {
        let token = SoftToken {
            module: self.module.clone(),
            folder: folder.to_path_buf(),
        };
        // Written last: its presence says that the token is there.
        if token.pin_file().exists() {
            return Ok(token);
        }
        let store = folder.join(TOKEN_STORE);
        let _ = fs::remove_dir_all(folder);
        make_private_dir(&store)?;
        let settings = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n",
            store.display()
        );
        fs::write(token.configuration(), settings)?;
        let pin = || Zeroizing::new(hex::encode((&mut OsRandom as &mut dyn Random).bytes::<16>()));
        let (user, officer) = (pin(), pin());
        write_private(&folder.join("so-pin"), &officer)?;
        let log = folder.join("log");
        // The tool takes PINs from its arguments or a terminal only. They show in the list of processes for
        // the moment that this takes; a PIN is of use only to who can read the store, which is root or we.
        let status = Plan::new("softhsm2-util", folder)
            .args(["--init-token", "--free", "--label", LABEL])
            .args(["--so-pin", officer.as_str(), "--pin", user.as_str(), "--module"])
            .arg(&self.module)
            .env("SOFTHSM2_CONF", token.configuration())
            .output(Output::File(log.clone()))
            .errors(Output::File(log.clone()))
            .run()?;
        ensure!(
            status.success(),
            "softhsm2-util (of the package softhsm2) made no token in {}; see {}: {}",
            store.display(),
            log.display(),
            crate::child::last_words(&log)
        );
        write_private(&token.pin_file(), &user)?;
        Ok(token)
    }
}

impl SoftToken {
    /// Lets a service keep its keys in the token.
    pub(super) fn attach(&self, plan: Plan) -> Plan {
        plan.env("SOFTHSM2_CONF", self.configuration())
            .arg("--pkcs11-module")
            .arg(&self.module)
            .arg("--pkcs11-pin-file")
            .arg(self.pin_file())
            .args(["--pkcs11-token-label", LABEL])
    }

    fn configuration(&self) -> PathBuf {
        self.folder.join("softhsm2.conf")
    }

    fn pin_file(&self) -> PathBuf {
        self.folder.join("pin")
    }
}

/// The folder below a token's own in which SoftHSM keeps what is in the token, private keys included.
pub const TOKEN_STORE: &str = "store";
const MODULE: &str = "libsofthsm2.so";
const LABEL: &str = "kps";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_that_is_not_there_is_named() {
        let refused = format!("{:#}", SoftTokens::find(Some(Path::new("/nowhere/x.so"))).unwrap_err());
        assert!(refused.contains("/nowhere/x.so"), "{refused}");
    }
}
