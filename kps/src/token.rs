//! Private keys in a PKCS#11 token: made there, used there, never read from there. Decides nothing;
//! the padding of what the token decrypts is taken off by `hgs_protocol::protector`.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, bail, ensure};
use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    mechanism::{Mechanism, MechanismType},
    object::{Attribute, AttributeType, ObjectClass, ObjectHandle},
    session::{Session, UserType},
    slot::Slot,
    types::AuthPin,
};
use hgs_protocol::{
    crypto::{CryptoError, RsaPublicKey},
    env::Random,
    protector::TokenKey,
};
use zeroize::Zeroizing;

/// Which token holds the service's keys.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct TokenOptions {
    /// PKCS#11 module (.so) of the token that holds this service's private keys
    #[arg(long, env = "HGS_PKCS11_MODULE", requires = "pkcs11_pin_file")]
    pub pkcs11_module: Option<PathBuf>,
    /// File with the user PIN of the token
    #[arg(long, env = "HGS_PKCS11_PIN_FILE", requires = "pkcs11_module")]
    pub pkcs11_pin_file: Option<PathBuf>,
    /// Label of the token, where the module has several
    #[arg(long, env = "HGS_PKCS11_TOKEN_LABEL", requires = "pkcs11_module")]
    pub pkcs11_token_label: Option<String>,
}

/// A token that this process is logged in to.
pub struct Token {
    module: Pkcs11,
    slot: Slot,
    /// Keeps the login, which lasts while any session does.
    idle: Mutex<Vec<Session>>,
}

impl Token {
    /// The token that the options name, if they name one.
    pub fn open(options: &TokenOptions) -> anyhow::Result<Option<Arc<Token>>> {
        match (&options.pkcs11_module, &options.pkcs11_pin_file) {
            (Some(module), Some(pin)) => Token::log_in(module, pin, options.pkcs11_token_label.as_deref()).map(Some),
            (None, None) => Ok(None),
            _ => bail!("--pkcs11-module and --pkcs11-pin-file belong together: give both or neither"),
        }
    }

    fn log_in(path: &Path, pin_file: &Path, label: Option<&str>) -> anyhow::Result<Arc<Token>> {
        let pin = Zeroizing::new(
            std::fs::read_to_string(pin_file)
                .with_context(|| format!("the token's PIN file {} cannot be read", pin_file.display()))?,
        );
        let module = Pkcs11::new(path).with_context(|| format!("{} is no PKCS#11 module", path.display()))?;
        match module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            Ok(()) => {}
            // Another part of this process uses the module; the sessions are our own all the same.
            Err(cryptoki::error::Error::Pkcs11(cryptoki::error::RvError::CryptokiAlreadyInitialized, _)) => {}
            Err(error) => return Err(error).context("the PKCS#11 module cannot be initialised"),
        }
        let mut slots = module.get_slots_with_initialized_token()?;
        if let Some(label) = label {
            slots.retain(|slot| module.get_token_info(*slot).is_ok_and(|info| info.label() == label));
        }
        let slot = match slots.as_slice() {
            [slot] => *slot,
            [] => bail!(
                "the PKCS#11 module has no initialised token of that label: make one, or change --pkcs11-token-label"
            ),
            _ => bail!("the PKCS#11 module has several tokens: name one with --pkcs11-token-label"),
        };
        let able = module.get_mechanism_list(slot)?;
        for (needed, what) in [
            (MechanismType::RSA_X_509, "raw RSA decryption (CKM_RSA_X_509)"),
            (
                MechanismType::SHA256_RSA_PKCS,
                "RSA signatures with SHA-256 (CKM_SHA256_RSA_PKCS)",
            ),
        ] {
            ensure!(
                able.contains(&needed),
                "the token lacks {what}, which this service needs"
            );
        }
        let session = module.open_rw_session(slot).context("the token opens no session")?;
        match session.login(UserType::User, Some(&AuthPin::new(pin.trim().into()))) {
            Ok(()) => {}
            Err(cryptoki::error::Error::Pkcs11(cryptoki::error::RvError::UserAlreadyLoggedIn, _)) => {}
            Err(error) => return Err(error).context("the token refuses the PIN in --pkcs11-pin-file"),
        }
        Ok(Arc::new(Token {
            module,
            slot,
            idle: Mutex::new(vec![session]),
        }))
    }

    /// Makes an RSA-2048 pair whose private key never leaves the token; its id in hex.
    pub fn generate(&self, label: &str, rng: &mut dyn Random) -> anyhow::Result<String> {
        let id: [u8; 16] = rng.bytes();
        let shared = [
            Attribute::Token(true),
            Attribute::Id(id.to_vec()),
            Attribute::Label(label.as_bytes().to_vec()),
        ];
        let public = [
            &shared[..],
            &[
                Attribute::ModulusBits(2048.into()),
                Attribute::PublicExponent(vec![1, 0, 1]),
                Attribute::Verify(true),
                Attribute::Encrypt(true),
            ],
        ]
        .concat();
        let private = [
            &shared[..],
            &[
                Attribute::Private(true),
                Attribute::Sensitive(true),
                Attribute::Extractable(false),
                Attribute::Sign(true),
                Attribute::Decrypt(true),
            ],
        ]
        .concat();
        self.with_session(|session| session.generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &public, &private))
            .context("the token makes no RSA-2048 key")?;
        Ok(hex::encode(id))
    }

    /// The key of that id.
    pub fn key(self: &Arc<Token>, id: &str) -> anyhow::Result<Box<dyn TokenKey>> {
        let place = || format!("the token has no RSA key of id {id}");
        let bytes = hex::decode(id).with_context(place)?;
        let find = |class| {
            self.with_session(|session| session.find_objects(&[Attribute::Class(class), Attribute::Id(bytes.clone())]))
        };
        let private = find(ObjectClass::PRIVATE_KEY)?.first().copied().with_context(place)?;
        let public = find(ObjectClass::PUBLIC_KEY)?.first().copied().with_context(place)?;
        let parts = self.with_session(|session| {
            session.get_attributes(public, &[AttributeType::Modulus, AttributeType::PublicExponent])
        })?;
        let public = match parts.as_slice() {
            [Attribute::Modulus(modulus), Attribute::PublicExponent(exponent)] => {
                RsaPublicKey::from_components(modulus, exponent).with_context(place)?
            }
            _ => bail!(place()),
        };
        Ok(Box::new(Key {
            token: self.clone(),
            private,
            public,
        }))
    }

    /// Destroys the pair of that id.
    pub fn destroy(&self, id: &str) -> anyhow::Result<()> {
        let id = hex::decode(id)?;
        self.with_session(|session| {
            for object in session.find_objects(&[Attribute::Id(id)])? {
                session.destroy_object(object)?;
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Sessions serve one thread at a time; as many stay open as were ever used at once.
    fn with_session<T>(
        &self,
        work: impl FnOnce(&Session) -> Result<T, cryptoki::error::Error>,
    ) -> Result<T, cryptoki::error::Error> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = idle().pop();
        let session = match taken {
            Some(session) => session,
            None => self.module.open_rw_session(self.slot)?,
        };
        // An operation that fails is over (PKCS#11 2.40, 5.2), so its session serves on.
        let done = work(&session);
        idle().push(session);
        done
    }
}

struct Key {
    token: Arc<Token>,
    private: ObjectHandle,
    public: RsaPublicKey,
}

impl TokenKey for Key {
    fn public(&self) -> &RsaPublicKey {
        &self.public
    }

    fn sign_pkcs1_sha256(&self, message: &[u8]) -> Result<Vec<u8>, CryptoError> {
        self.token
            .with_session(|session| session.sign(&Mechanism::Sha256RsaPkcs, self.private, message))
            .map_err(|error| refused(&error))
    }

    fn decrypt_raw(&self, block: &[u8]) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
        let plain = self
            .token
            .with_session(|session| session.decrypt(&Mechanism::RsaX509, self.private, block))
            .map(Zeroizing::new)
            .map_err(|error| refused(&error))?;
        // A token may leave leading zeros out.
        let missing = block.len().checked_sub(plain.len()).ok_or(CryptoError::Open)?;
        let mut whole = Zeroizing::new(vec![0; missing]);
        whole.extend_from_slice(&plain);
        Ok(whole)
    }
}

fn refused(error: &cryptoki::error::Error) -> CryptoError {
    tracing::warn!(%error, "the token refused an operation");
    CryptoError::Refused
}
