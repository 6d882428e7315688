//! Between a store's records and those of etcd.

use crate::records::{Record, SessionId};
use etcd_client::{Client, KeyValue, KvClient};

/// Translates between a record's key and its key in etcd.
#[derive(Clone)]
pub(super) struct Keys {
    pub(super) records: String,
}

impl Keys {
    pub(super) fn of(&self, key: &str) -> Vec<u8> {
        [self.records.as_bytes(), key.as_bytes()].concat()
    }

    pub(super) fn back(&self, key: &[u8]) -> String {
        let key = key.strip_prefix(self.records.as_bytes()).unwrap_or(key);
        String::from_utf8_lossy(key).into_owned()
    }

    pub(super) fn record(&self, kv: &KeyValue) -> Record {
        Record {
            key: self.back(kv.key()),
            value: kv.value().to_vec(),
            revision: kv.mod_revision() as u64,
            session: (kv.lease() != 0).then(|| SessionId(kv.lease() as u64)),
        }
    }
}

/// Returns the first key after all that begin with `prefix`, which is text and so has no byte 255.
pub(super) fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

/// Returns a client without a limit on answers: lists can exceed the default one.
pub(super) fn kv(client: &Client) -> KvClient {
    client.kv_client().max_decoding_message_size(usize::MAX)
}

pub(super) fn revision_of(header: Option<&etcd_client::ResponseHeader>) -> u64 {
    header.map_or(0, |header| header.revision() as u64)
}
