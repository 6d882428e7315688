//! Sealing of records in a shared store: only holders of the authority's key can read them.

use crate::{Authority, Error, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};

/// A key that seals and opens texts.
pub struct Seal(LessSafeKey);

impl Seal {
    /// Derives an authority's seal from the authority's key.
    pub fn of(authority: &Authority) -> Result<Seal> {
        let secret = Salt::new(HKDF_SHA256, b"mvm").extract(&authority.secret());
        let key = secret.expand(&[b"kept answers"], &CHACHA20_POLY1305).map_err(failed)?;
        Ok(Seal(LessSafeKey::new(UnboundKey::from(key))))
    }

    /// Seals a text. Only a seal of the same authority opens it, and only under the same name.
    pub fn close(&self, name: &str, text: &[u8]) -> Result<String> {
        // A random nonce suffices: one authority seals far too few texts for two nonces to collide.
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(Error::Random)?;
        let mut sealed = text.to_vec();
        let by = Nonce::assume_unique_for_key(nonce);
        self.0.seal_in_place_append_tag(by, Aad::from(name), &mut sealed).map_err(failed)?;
        Ok(BASE64.encode([&nonce[..], &sealed].concat()))
    }

    /// Returns the text that was sealed under this name.
    pub fn open(&self, name: &str, sealed: &str) -> Result<Vec<u8>> {
        let broken = || Error::SealedByAnother(name.to_owned());
        let mut bytes = BASE64.decode(sealed).map_err(|_| broken())?;
        let (nonce, text) = bytes.split_at_mut_checked(NONCE_LEN).ok_or_else(broken)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| broken())?;
        let text = self.0.open_in_place(nonce, Aad::from(name), text).map_err(|_| broken())?;
        Ok(text.to_vec())
    }
}

fn failed(_: ring::error::Unspecified) -> Error {
    Error::Seal
}

#[cfg(test)]
mod tests {
    use super::*;
    use mvm_model::Timestamp;
    use proptest::prelude::*;

    fn seal() -> Seal {
        let dir = tempfile::tempdir().expect("directory");
        Seal::of(
            &Authority::create(dir.path(), Timestamp::from_millis(1_700_000_000_000))
                .expect("an authority"),
        )
        .expect("a seal")
    }

    #[test]
    fn what_is_sealed_is_read_by_the_same_authority_under_the_same_name() {
        let ours = seal();
        let sealed = ours.close("a", b"a token").expect("sealed");
        assert!(!sealed.contains("token"));
        assert_ne!(sealed, ours.close("a", b"a token").expect("sealed"), "each is another");
        assert_eq!(ours.open("a", &sealed).expect("opened"), b"a token");
        assert!(ours.open("b", &sealed).is_err());
        assert!(seal().open("a", &sealed).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn any_text_is_refused(text in "[A-Za-z0-9+/]{0,80}|\\PC{0,20}") {
            prop_assert!(seal().open("a", &text).is_err());
        }
    }
}
