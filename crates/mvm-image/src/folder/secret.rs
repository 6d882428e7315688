//! Decides which files of a folder hold secrets: by name if the name leaves no doubt, by content if
//! a source file or a public key may have the same name.

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Folders that tools keep secrets in.
const FOLDERS: [&str; 7] =
    [".aws", ".azure", ".gcloud", ".gnupg", ".kube", ".password-store", ".ssh"];
/// Files in known places, whose bare name says nothing.
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
/// Endings of files with keys and certificates together, and of key stores.
const ENDINGS: [&str; 7] = [".jks", ".kdbx", ".keystore", ".p12", ".pfx", ".pkcs12", ".ppk"];
/// Endings such as in `.env.example`, which mark files without secrets.
const EXAMPLES: [&str; 6] = ["default", "defaults", "dist", "example", "sample", "template"];
/// Endings of data files, as opposed to source files of a program that handles credentials.
const DATA: [&str; 11] =
    ["", "conf", "csv", "db", "ini", "json", "properties", "toml", "txt", "xml", "yaml"];
/// How many bytes of a file are searched. A key stands at the head of its file, and a service
/// account's file is short.
const HEAD: u64 = 64 << 10;

/// Whether a file or folder holds a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Plain,
    /// The file may hold a secret, or may be what the flake needs.
    Doubtful,
    Secret,
}

/// Judges the file or folder at `path`, whose path inside the folder is `inside`.
pub(super) fn judge(path: &Path, inside: &Path, kind: std::fs::FileType) -> Verdict {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let secret = |yes: bool| if yes { Verdict::Secret } else { Verdict::Plain };
    if PLACES.iter().any(|place| inside.ends_with(place)) {
        return Verdict::Secret;
    }
    if kind.is_dir() {
        return secret(FOLDERS.contains(&name.as_str()));
    }
    // Nix copies a symbolic link itself, not what it points to.
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

/// Splits a name at its last dot. A hidden file's leading dot does not count.
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
    // The file's name does not matter here. A key in the middle of a source file belongs to a test.
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
        // A bare key, such as WireGuard's, has no header at all.
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
