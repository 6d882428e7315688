//! Names and references: exactly those that the rule allows are accepted, and they print as they
//! were written.

mod support;

use mvm_model::Code;
use mvm_model::{Digest, InstanceId, InstanceRef, LeaseId, Name, PoolRef};
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::{Debug, Display};
use std::str::FromStr;

/// The rule, stated differently than in the parser: each character in its place.
fn is_name(text: &str) -> bool {
    let characters: Vec<char> = text.chars().collect();
    let plain = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=63).contains(&characters.len())
        && characters.first().is_some_and(plain)
        && characters.last().is_some_and(plain)
        && characters.iter().all(|c| plain(c) || *c == '-')
}

fn is_id(text: &str) -> bool {
    let hexadecimal = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    text.chars().count() == 10 && text.starts_with("i-") && text.chars().skip(2).all(hexadecimal)
}

fn is_lease_id(text: &str) -> bool {
    let hexadecimal = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    matches!(text.chars().count(), 10 | 18)
        && text.starts_with("l-")
        && text.chars().skip(2).all(hexadecimal)
}

/// Arbitrary texts, and many that are almost valid.
fn texts() -> impl Strategy<Value = String> {
    let part = "[a-z0-9-]{0,66}";
    prop_oneof![
        any::<String>(),
        "[a-zA-Z0-9_./ -]{0,70}",
        part,
        "[a-z0-9][a-z0-9-]{0,61}[a-z0-9]",
        "[a-z0-9é日😀-]{0,64}",
        "i-[0-9a-fA-F]{7,9}",
        "l-([0-9a-f]{8}){1,2}",
        "[0-9a-f]{62,66}",
        "[0-9a-fA-F+]{64}",
        "l-[0-9a-fA-F+]{7,17}",
        "[a-z0-9-]{0,5}(/[a-z0-9-]{0,5}){0,4}",
        "[a-z]{1,3}/[a-z]{1,3}/i-[0-9a-f]{8}",
        "[a-z]{1,3}/[a-z]{1,3}/i-[0-9a-f]{8}[/\n ]?",
    ]
}

/// Checks that a text is accepted or refused as `rule` says, and that an accepted one prints and
/// serialises to the same text.
fn holds<T>(text: &str, rule: bool) -> Result<(), TestCaseError>
where
    T: FromStr<Err = mvm_model::Fault> + Display + Debug + PartialEq + Serialize + DeserializeOwned,
{
    let parsed = text.parse::<T>();
    prop_assert_eq!(parsed.is_ok(), rule, "{:?}", text);
    let quoted = serde_json::to_string(text).unwrap();
    let read = serde_json::from_str::<T>(&quoted);
    match parsed {
        Ok(value) => {
            prop_assert_eq!(value.to_string(), text);
            prop_assert_eq!(serde_json::to_string(&value).unwrap(), quoted);
            prop_assert_eq!(read.unwrap(), value);
        }
        Err(fault) => {
            prop_assert!(read.is_err());
            prop_assert!(matches!(
                fault.code,
                Code::InvalidName | Code::InvalidReference | Code::InvalidValue
            ));
            prop_assert!(!fault.message.is_empty() && !fault.hint.is_empty());
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(support::cases(4000))]

    #[test]
    fn a_name_is_what_the_rule_says(text in texts()) {
        holds::<Name>(&text, is_name(&text))?;
    }

    #[test]
    fn a_reference_is_names_between_slashes(text in texts()) {
        let parts: Vec<&str> = text.split('/').collect();
        holds::<PoolRef>(&text, parts.len() == 2 && parts.iter().all(|part| is_name(part)))?;
        let instance = matches!(parts[..], [tenant, pool, id] if is_name(tenant) && is_name(pool) && is_id(id));
        holds::<InstanceRef>(&text, instance)?;
        holds::<InstanceId>(&text, is_id(&text))?;
    }

    #[test]
    fn every_number_is_an_id_of_its_own(number: u32, other: u32) {
        let id = InstanceId::from_number(number);
        holds::<InstanceId>(&id.to_string(), true)?;
        prop_assert_eq!(format!("i-{}", id.digits()), id.to_string());
        let same = id.to_string() == InstanceId::from_number(other).to_string();
        prop_assert_eq!(same, number == other);
    }
}

proptest! {
    #![proptest_config(support::cases(4000))]

    #[test]
    fn a_lease_id_has_eight_digits_or_sixteen(text in texts()) {
        holds::<LeaseId>(&text, is_lease_id(&text))?;
    }

    #[test]
    fn a_digest_has_sixty_four_digits(text in texts()) {
        let hexadecimal = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        holds::<Digest>(&text, text.chars().count() == 64 && text.chars().all(hexadecimal))?;
    }

    #[test]
    fn a_digest_is_its_text(bytes: [u8; 32], other: [u8; 32], prefix in 0usize..64) {
        let (digest, another) = (Digest::from_bytes(bytes), Digest::from_bytes(other));
        let text = digest.to_string();
        holds::<Digest>(&text, true)?;
        prop_assert_eq!(&text, &mvm_model::hex::digits(bytes));
        prop_assert!(digest.begins_with(&text[..prefix]) && digest.begins_with(&digest.short()));
        // Lists are sorted by the digests' texts.
        prop_assert_eq!(digest.cmp(&another), text.cmp(&another.to_string()));
    }

    #[test]
    fn every_number_is_the_id_of_one_lease(number: u32, claim: u64) {
        let (own, of_claim) = (LeaseId::from_number(number), LeaseId::of_claim(claim));
        holds::<LeaseId>(&own.to_string(), true)?;
        holds::<LeaseId>(&of_claim.to_string(), true)?;
        prop_assert_eq!((own.to_string().len(), of_claim.to_string().len()), (10, 18));
        prop_assert!(!own.is_claim() && of_claim.is_claim());
        prop_assert_ne!(own, LeaseId::of_claim(number.into()));
    }
}

#[test]
fn the_bounds_of_a_name() {
    let of = |length| "a".repeat(length);
    for (text, good) in [
        (of(1), true),
        (of(63), true),
        (of(64), false),
        (String::new(), false),
        ("-a".into(), false),
        ("a-".into(), false),
        ("-".into(), false),
        ("a--b".into(), true),
        ("0".into(), true),
        ("ä".into(), false),
        ("a\n".into(), false),
        ("a\0".into(), false),
    ] {
        assert_eq!(text.parse::<Name>().is_ok(), good, "{text:?}");
    }
}

/// A refusal names the true fault.
#[test]
fn a_refused_name_is_told_why() {
    let message = |text: &str| text.parse::<Name>().unwrap_err().message;
    assert!(message("").contains("is empty"));
    assert!(message("Ci").contains("a character other than"));
    assert!(message("ci-").contains("hyphen"));
    assert!(message(&"a".repeat(64)).contains("longer than 63"));
    // 20 characters, 80 bytes.
    assert!(message(&"😀".repeat(20)).contains("a character other than"));
    let long = "x".repeat(1 << 20);
    assert!(message(&long).len() < 400, "a long name is cut in the message");
    let fault = format!("{long}/").parse::<InstanceRef>().unwrap_err();
    assert!(fault.message.len() < 400);
}
