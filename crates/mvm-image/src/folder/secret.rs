//! Which files of a folder hold secrets: by their names where these leave no doubt, by what is in
//! them where a source file or a public key may have the same name.

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Folders that tools keep secrets in.
const FOLDERS: [&str; 7] =
    [".aws", ".azure", ".gcloud", ".gnupg", ".kube", ".password-store", ".ssh"];
/// Files of a known place, where the name alone says nothing.
const PLACES: [&str; 4] = [
    ".docker/config.json",
    ".config/gh/hosts.yml",
    ".config/gcloud",
    ".config/containers/auth.json",
];
const NAMES: [&str; 24] = [
    "_netrc",
    ".boto",
    ".dockercfg",
    ".env",
    ".git-credentials",
    ".htpasswd",
    ".my.cnf",
    ".netrc",
    ".npmrc",
    ".pgpass",
    ".pypirc",
    ".s3cfg",
    ".terraformrc",
    ".vault-token",
    "application_default_credentials.json",
    "id_dsa",
    "id_ecdsa",
    "id_ecdsa_sk",
    "id_ed25519",
    "id_ed25519_sk",
    "id_rsa",
    "kubeconfig",
    "secring.gpg",
    "vault_pass",
];
/// Keys and certificates in one file, and stores of keys.
const ENDINGS: [&str; 7] = [".jks", ".kdbx", ".keystore", ".p12", ".pfx", ".pkcs12", ".ppk"];
/// `.env.example` and the like are there to be read.
const EXAMPLES: [&str; 6] = ["default", "defaults", "dist", "example", "sample", "template"];
/// Files of data, as opposed to those of a program that deals with credentials.
const DATA: [&str; 11] =
    ["", "conf", "csv", "db", "ini", "json", "properties", "toml", "txt", "xml", "yaml"];
/// So much of a file is looked at. A key is at the head of its file; what a service account has is short.
const HEAD: u64 = 64 << 10;

/// What is known of a file or folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Plain,
    /// It may hold one, or may be what the flake needs.
    Doubtful,
    Secret,
}

/// Judges what is at `path`, which is `inside` of the folder.
pub(super) fn judge(path: &Path, inside: &Path, kind: std::fs::FileType) -> Verdict {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let secret = |yes: bool| if yes { Verdict::Secret } else { Verdict::Plain };
    if PLACES.iter().any(|place| inside.ends_with(place)) {
        return Verdict::Secret;
    }
    if kind.is_dir() {
        return secret(FOLDERS.contains(&name.as_str()));
    }
    // Of a symbolic link Nix copies where it leads, and nothing of what is there.
    if by_name(&name) || kind.is_file() && by_content(path, &name) {
        return Verdict::Secret;
    }
    let doubtful = name == ".envrc"
        || name.ends_with(".env")
        || name.ends_with(".tfvars")
        || name.ends_with(".tfvars.json")
        || stem_and_ending(&name)
            .is_some_and(|(stem, ending)| ["secret", "secrets"].contains(&stem) && is_data(ending));
    if doubtful { Verdict::Doubtful } else { Verdict::Plain }
}

fn by_name(name: &str) -> bool {
    let example = |rest: &str| rest.rsplit('.').next().is_some_and(|end| EXAMPLES.contains(&end));
    let of_data = |stem_is: fn(&str) -> bool| {
        stem_and_ending(name).is_some_and(|(stem, ending)| stem_is(stem) && is_data(ending))
    };
    NAMES.contains(&name)
        || name.strip_prefix(".env.").is_some_and(|rest| !example(rest))
        || name.contains(".tfstate")
        || ENDINGS.iter().any(|ending| name.ends_with(ending))
        || of_data(|stem| stem.trim_start_matches('.').starts_with("credentials"))
        || of_data(|stem| stem.starts_with("client_secret"))
}

/// A name before and after its last dot; what is hidden has no ending for that.
fn stem_and_ending(name: &str) -> Option<(&str, &str)> {
    match name.rsplit_once('.') {
        Some(("", _)) | None => Some((name, "")),
        parts => parts,
    }
}

fn is_data(ending: &str) -> bool {
    DATA.contains(&ending) || ending == "yml"
}

fn by_content(path: &Path, name: &str) -> bool {
    let mut head = Vec::new();
    let read = File::open(path).and_then(|file| file.take(HEAD).read_to_end(&mut head));
    if read.is_err() {
        return false; // copying it says why
    }
    let has = |words: &str| memchr::memmem::find(&head, words.as_bytes()).is_some();
    // Whatever it is called. A key in the midst of a source file is a test's.
    let text = head.trim_ascii_start();
    let first = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let begins_as_key = first.starts_with(b"-----BEGIN ")
        && memchr::memmem::find(first, b"PRIVATE KEY").is_some()
        || first.starts_with(b"PuTTY-User-Key-File-");
    let age = || {
        let mut lines = text.split(|byte| *byte == b'\n').take(8);
        lines.any(|line| line.starts_with(b"AGE-SECRET-KEY-1"))
    };
    if begins_as_key || age() {
        return true;
    }
    match Path::new(name).extension().and_then(|ending| ending.to_str()) {
        Some("pem" | "crt" | "cer" | "asc" | "json") => has("PRIVATE KEY-----"),
        // A bare key has no words at all, such as WireGuard's.
        Some("key") => has("PRIVATE KEY") || !has("-----BEGIN "),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(name: &str, text: &str) -> Verdict {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("folder");
        std::fs::write(&path, text).expect("file");
        let kind = std::fs::metadata(&path).expect("file").file_type();
        judge(&path, Path::new(name), kind)
    }

    const KEY: &str =
        "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\n-----END OPENSSH PRIVATE KEY-----\n";
    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
    const PUBLIC: &str = "-----BEGIN PGP PUBLIC KEY BLOCK-----\nmQIN\n";

    #[test]
    fn names_that_leave_no_doubt_are_secrets() {
        for name in [
            ".env",
            ".env.production",
            ".ENV",
            "a/.npmrc",
            ".pypirc",
            ".netrc",
            "id_rsa",
            "id_ed25519_sk",
            "credentials",
            "credentials.json",
            "credentials-live.yml",
            ".credentials",
            "client_secret_12.json",
            "terraform.tfstate",
            "terraform.tfstate.backup",
            "a/.docker/config.json",
            "x.p12",
            "x.PFX",
        ] {
            assert_eq!(verdict(name, "x"), Verdict::Secret, "{name}");
        }
    }

    #[test]
    fn what_a_flake_may_need_is_judged_by_what_is_in_it() {
        let both = format!("{CERTIFICATE}{KEY}");
        let account = r#"{"private_key": "-----BEGIN PRIVATE KEY-----\nMIIE\n"}"#;
        for (name, text) in [
            ("server.pem", both.as_str()),
            ("server.key", KEY),
            ("wireguard.key", "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="),
            ("id_deploy", KEY),
            ("deploy", &format!("\n{KEY}")),
            ("account.json", account),
            ("age.txt", "# created: x\n# public key: age1\nAGE-SECRET-KEY-1QQ\n"),
        ] {
            assert_eq!(verdict(name, text), Verdict::Secret, "{name}");
        }
        let test_of_keys = format!("const KEY: &str = \"{KEY}\";");
        for (name, text) in [
            ("ca.pem", CERTIFICATE),
            ("archive.key", PUBLIC),
            ("id_rsa.pub", "ssh-rsa AAAA"),
            ("id_foo.rs", "struct Id;"),
            ("tests/tls.rs", &test_of_keys),
            ("credentials.rs", "struct Credentials;"),
            ("credentials.nix", "{ }"),
            (".env.example", "TOKEN="),
            ("config.json", "{ }"),
            ("environment", "x"),
            ("key.nix", "{ }"),
        ] {
            assert_eq!(verdict(name, text), Verdict::Plain, "{name}");
        }
        for name in [".envrc", "production.env", "secrets.yaml", "live.tfvars"] {
            assert_eq!(verdict(name, "x"), Verdict::Doubtful, "{name}");
        }
    }
}
