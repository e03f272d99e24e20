//! Text that is kept from being shown: passwords.

use zeroize::Zeroizing;

/// A secure string: wiped when dropped, without `Debug`, shown by no formatter.
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the text over.
    pub fn new(text: String) -> Secret {
        Secret(Zeroizing::new(text))
    }

    /// The text, for whoever must use it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}
