//! Warnings about certificates that have expired or soon will, with the command that helps.

use crate::Credential;
use crate::certificate::validity_of;
use mvm_api::identity::{Facts, Identity, Validity};
use mvm_model::Timestamp;
use mvm_model::certificate::{CertificateStatus, roughly, status};

/// A warning about a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Whether the certificate has expired already.
    pub expired: bool,
    /// The certificate's holder, and when it expires or has expired.
    pub detail: String,
    /// The command that renews the certificate.
    pub remedy: String,
}

/// Returns the warnings about an identity at `now`: about its own certificate, and those of the
/// authorities that it trusts.
pub fn warnings(credential: &Credential, now: Timestamp) -> Vec<Warning> {
    let own = warning("the certificate of", &credential.facts, now);
    let authority = |der| {
        let who = "the certificate of an authority that this identity trusts";
        let remedy =
            "make another authority (mvm ca init --dir DIR), and have everybody join it anew";
        warning_about(who.to_owned(), validity_of(der).ok()?, now, remedy.to_owned())
    };
    own.into_iter().chain(credential.roots.iter().filter_map(authority)).collect()
}

fn warning(what: &str, facts: &Facts, now: Timestamp) -> Option<Warning> {
    let name = facts.identity.name();
    let remedy = match &facts.identity {
        Identity::Node(_) | Identity::Joiner(_) => format!(
            "let it join again: mvm node invite {name} --coordinator HOST:PORT | ssh {name} mvm node join -"
        ),
        Identity::Coordinator(_) => {
            format!(
                "issue another where the authority is: mvm ca issue --role coordinator --name {name} --out DIR"
            )
        }
        Identity::Operator(_) => {
            format!(
                "issue another where the authority is: mvm ca issue --role operator --name {name} --out DIR"
            )
        }
        Identity::TenantOperator { tenant, .. } => format!(
            "issue another where the authority is: mvm ca issue --role tenant-operator --tenant {tenant} --name {name} --out DIR"
        ),
    };
    warning_about(format!("{what} {}", facts.identity.holder()), facts.validity, now, remedy)
}

fn warning_about(
    who: String,
    validity: Validity,
    now: Timestamp,
    remedy: String,
) -> Option<Warning> {
    let (expired, when) = match status(validity.not_before, validity.not_after, now) {
        CertificateStatus::Valid => return None,
        CertificateStatus::ExpiresSoon(left) => (false, format!("runs out in {}", roughly(left))),
        CertificateStatus::Expired(ago) => (true, format!("has run out {} ago", roughly(ago))),
    };
    Some(Warning { expired, detail: format!("{who} {when}"), remedy })
}

/// Logs the warnings.
pub fn log_warnings(credential: &Credential, now: Timestamp) {
    for Warning { expired, detail, remedy } in warnings(credential, now) {
        match expired {
            true => tracing::error!("{detail}; {remedy}"),
            false => tracing::warn!("{detail}, and was not renewed yet; {remedy}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::{Authority, new_key};
    use std::time::Duration;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn who_runs_out_is_told_with_the_command_that_mends_it() {
        let dir = tempfile::tempdir().expect("directory");
        let begin = Timestamp::from_millis(1_700_000_000_000);
        let authority = Authority::create(&dir.path().join("ca"), begin).expect("authority");
        let credential = |identity: &str| {
            let key = new_key().expect("key");
            let identity: Identity = identity.parse().expect("identity");
            let issued = authority.issue(&identity, &key, DAY * 30, begin).expect("issued");
            let both = format!("{}\n{}", issued.pem, key.serialize_pem());
            let roots = authority.certificate().as_bytes();
            Credential::read(both.as_bytes(), roots, None, Default::default()).expect("credential")
        };
        for (identity, command) in [
            ("spiffe://mvm/node/n1", "mvm node invite n1"),
            ("spiffe://mvm/coordinator/c1", "mvm ca issue --role coordinator --name c1"),
            ("spiffe://mvm/tenant-operator/ci/bob", "--tenant ci --name bob"),
        ] {
            let credential = credential(identity);
            assert_eq!(warnings(&credential, begin + DAY * 20), []);
            let [soon] = &warnings(&credential, begin + DAY * 28)[..] else { panic!("one") };
            assert!(!soon.expired && soon.detail.ends_with("runs out in 2 days"), "{soon:?}");
            let [late] = &warnings(&credential, begin + DAY * 40)[..] else { panic!("one") };
            assert!(late.expired && late.detail.contains("has run out 10 days ago"), "{late:?}");
            assert!(soon.remedy.contains(command) && late.remedy == soon.remedy, "{soon:?}");
        }
        // Ten years later the authority's certificate has expired, too.
        let all = warnings(&credential("spiffe://mvm/node/n1"), begin + DAY * 4000);
        assert!(all.len() == 2 && all[1].remedy.contains("mvm ca init"), "{all:?}");
    }
}
