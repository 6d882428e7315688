//! How to reach the cluster.

use std::path::PathBuf;
use std::time::Duration;

/// How to reach the cluster.
#[derive(Clone, Debug)]
pub struct EtcdOptions {
    /// The members, each as `https://HOST:PORT`.
    pub endpoints: Vec<String>,
    /// Prefix of all keys, such as `mvm/FLEET`: nothing outside it is read or written.
    pub prefix: String,
    /// Which certificates to trust and to present; `None` means unencrypted, for tests on loopback
    /// only.
    pub tls: Option<EtcdTls>,
    /// How long one member may take to answer.
    pub request_timeout: Duration,
    /// How long all tries together may take until the cluster counts as unreachable.
    pub patience: Duration,
}

/// PEM files, read at every new connection.
#[derive(Clone, Debug)]
pub struct EtcdTls {
    /// The authority that signed the members' certificates.
    pub authority: PathBuf,
    /// The certificate to present.
    pub certificate: PathBuf,
    /// The key of that certificate.
    pub key: PathBuf,
}

impl EtcdOptions {
    /// Makes options with the usual times: 3 s per request, 15 s in all.
    pub fn new(endpoints: Vec<String>, prefix: &str, tls: Option<EtcdTls>) -> EtcdOptions {
        EtcdOptions {
            endpoints,
            prefix: prefix.trim_end_matches('/').to_owned(),
            tls,
            request_timeout: Duration::from_secs(3),
            patience: Duration::from_secs(15),
        }
    }
}
