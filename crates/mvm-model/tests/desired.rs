//! The desired-state document: the specification's example is accepted, faulty documents are
//! refused with the path of the fault, and the shipped schema is that of the types.

use mvm_model::Code;
use mvm_model::Mib;
use mvm_model::desired::DesiredState;
use proptest::prelude::*;
use serde_json::{Value, json};

/// The document of the specification example, to the letter.
const EXAMPLE: &str = include_str!("../../../examples/desired-state.json");
const SCHEMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/schema/desired-state.v1.json");

fn example() -> Value {
    serde_json::from_str(EXAMPLE).unwrap()
}

#[test]
fn the_specification_example_is_taken_and_comes_back_equal() {
    let state = DesiredState::parse(EXAMPLE.as_bytes()).unwrap();
    assert_eq!(state.node_id.as_str(), "ci-node-01");
    let pool = &state.tenants[0].pools[0];
    assert_eq!((pool.desired_counts.warm, pool.desired_counts.sleeping), (4, 8));
    assert_eq!(pool.instance_resources.mem_mib, Mib(4096));
    let again = serde_json::to_vec(&state).unwrap();
    assert_eq!(DesiredState::parse(&again).unwrap(), state);
}

#[test]
fn each_fault_is_refused_with_its_path() {
    let tenant = "/tenants/0";
    let other = |id: &str, net: u16, subnet: &str| json!({"tenant_id": id, "network": {"tenant_net_id": net, "ipv4_subnet": subnet}});
    let pool = || example().pointer("/tenants/0/pools/0").unwrap().clone();
    type Change = Box<dyn Fn(&mut Value)>;
    let set = |pointer: &'static str, value: Value| -> Change {
        Box::new(move |document| *document.pointer_mut(pointer).unwrap() = value.clone())
    };
    let push = |pointer: &'static str, value: Value| -> Change {
        Box::new(move |document| {
            document.pointer_mut(pointer).unwrap().as_array_mut().unwrap().push(value.clone());
        })
    };
    let egress = |value: Value| -> Change {
        Box::new(move |document| document["tenants"][0]["pools"][0]["egress"] = value.clone())
    };
    let add = |pointer: &'static str, key: &'static str| -> Change {
        Box::new(move |document| {
            let object = document.pointer_mut(pointer).unwrap().as_object_mut().unwrap();
            object.insert(key.into(), json!(1));
        })
    };
    let counts = "$.tenants[0].pools[0].desired_counts";
    let cases: Vec<(Change, Code, String)> = vec![
        (set("/schema_version", json!(2)), Code::UnsupportedVersion, "$.schema_version".into()),
        (
            egress(json!({"mode": "allow", "allow": ["10.0.0.0/8:99999"]})),
            Code::InvalidDocument,
            "$.tenants[0].pools[0].egress.allow[0]".into(),
        ),
        (
            egress(json!({"mode": "none", "allow": ["10.0.0.0/8"]})),
            Code::InvalidValue,
            "$.tenants[0].pools[0].egress.allow".into(),
        ),
        (set("/node_id", json!("Node_1")), Code::InvalidDocument, "$.node_id".into()),
        (add("", "nodeid"), Code::InvalidDocument, "$.nodeid".into()),
        (
            add("/tenants/0/quotas", "max_wram"),
            Code::InvalidDocument,
            "$.tenants[0].quotas.max_wram".into(),
        ),
        (
            set("/tenants/0/quotas/max_warm", json!("4")),
            Code::InvalidDocument,
            "$.tenants[0].quotas.max_warm".into(),
        ),
        (
            set("/tenants/0/network/tenant_net_id", json!(4096)),
            Code::InvalidNetwork,
            "$.tenants[0].network.tenant_net_id".into(),
        ),
        (
            set("/tenants/0/network/ipv4_subnet", json!("10.240.20.7/24")),
            Code::InvalidNetwork,
            "$.tenants[0].network.ipv4_subnet".into(),
        ),
        (
            set("/tenants/0/network/ipv4_subnet", json!("10.240.20.0/29")),
            Code::SubnetTooSmall,
            "$.tenants[0].network.ipv4_subnet".into(),
        ),
        (
            push("/tenants", other("ci", 21, "10.240.21.0/24")),
            Code::Duplicate,
            "$.tenants[1].tenant_id".into(),
        ),
        (
            push("/tenants", other("web", 20, "10.240.21.0/24")),
            Code::Conflict,
            "$.tenants[1].network.tenant_net_id".into(),
        ),
        (
            push("/tenants", other("web", 21, "10.240.0.0/16")),
            Code::Conflict,
            "$.tenants[1].network.ipv4_subnet".into(),
        ),
        (push("/tenants/0/pools", pool()), Code::Duplicate, "$.tenants[0].pools[1].pool_id".into()),
        (
            set("/tenants/0/quotas/max_pools", json!(0)),
            Code::QuotaExceeded,
            "$.tenants[0].pools".into(),
        ),
        (
            set("/tenants/0/pools/0/desired_counts/warm", json!(5)),
            Code::QuotaExceeded,
            format!("{counts}.warm"),
        ),
        (
            set("/tenants/0/pools/0/desired_counts/running", json!(17)),
            Code::QuotaExceeded,
            format!("{counts}.running"),
        ),
        (
            set("/tenants/0/pools/0/desired_counts/sleeping", json!(29)),
            Code::QuotaExceeded,
            counts.into(),
        ),
        (
            set("/tenants/0/pools/0/desired_counts/sleeping", json!(-1)),
            Code::InvalidDocument,
            format!("{counts}.sleeping"),
        ),
        (set("/tenants/0/quotas/max_disk_gib", json!(10)), Code::QuotaExceeded, counts.into()),
        (set("/tenants/0/quotas/max_vcpus", json!(15)), Code::QuotaExceeded, counts.into()),
        (set("/tenants/0/quotas/max_mem_mib", json!(9999)), Code::QuotaExceeded, counts.into()),
        (
            set("/tenants/0/pools/0/instance_resources/vcpus", json!(0)),
            Code::InvalidValue,
            "$.tenants[0].pools[0].instance_resources.vcpus".into(),
        ),
        (
            set("/tenants/0/pools/0/flake_ref", json!("")),
            Code::InvalidValue,
            "$.tenants[0].pools[0].flake_ref".into(),
        ),
        (
            set("/tenants/0/pools/0/flake_ref", json!("--option")),
            Code::InvalidValue,
            "$.tenants[0].pools[0].flake_ref".into(),
        ),
    ];
    assert!(example().pointer(tenant).is_some());
    for (change, code, path) in cases {
        let mut document = example();
        change(&mut document);
        let fault = DesiredState::parse(document.to_string().as_bytes()).unwrap_err();
        assert_eq!((fault.code, fault.path.as_str()), (code, path.as_str()), "{}", fault.message);
    }
}

#[test]
fn a_field_that_stands_twice_or_is_missing_is_refused() {
    let twice = EXAMPLE.replacen("\"max_warm\": 4", "\"max_warm\": 4, \"max_warm\": 8", 1);
    let fault = DesiredState::parse(twice.as_bytes()).unwrap_err();
    assert_eq!(fault.path, "$.tenants[0].quotas", "{fault}");
    assert!(fault.message.contains("max_warm"), "{fault}");
    let fault = DesiredState::parse(br#"{"schema_version": 1, "tenants": []}"#).unwrap_err();
    assert!(fault.message.contains("node_id"), "{fault}");
    let fault = DesiredState::parse(b"{\"schema_version\": 1").unwrap_err();
    assert!(fault.message.contains("not JSON"), "{fault}");
}

#[test]
fn the_schema_that_is_shipped_is_that_of_the_types() {
    let made = serde_json::to_string_pretty(&DesiredState::json_schema()).unwrap() + "\n";
    if std::env::var_os("MVM_WRITE_SCHEMA").is_some() {
        std::fs::write(SCHEMA, &made).unwrap();
    }
    let shipped = std::fs::read_to_string(SCHEMA).unwrap();
    assert!(made == shipped, "write it again: MVM_WRITE_SCHEMA=1 cargo test -p mvm-model");
}

#[test]
fn the_schema_takes_what_the_parser_takes_and_refuses_unknown_fields() {
    let schema = jsonschema::validator_for(&DesiredState::json_schema()).unwrap();
    assert!(schema.is_valid(&example()));
    for change in ["/tenants/0/quotas", "/tenants/0", "/tenants/0/pools/0", ""] {
        let mut document = example();
        let object = document.pointer_mut(change).unwrap().as_object_mut().unwrap();
        object.insert("unknown".into(), json!(1));
        assert!(!schema.is_valid(&document), "{change}");
    }
    for (pointer, value) in [
        ("/schema_version", json!(2)),
        ("/tenants/0/tenant_id", json!("-ci")),
        ("/tenants/0/network/tenant_net_id", json!(4096)),
        ("/tenants/0/pools/0/instance_resources/mem_mib", json!(1)),
        ("/tenants/0/pools/0/desired_counts/warm", json!(-1)),
    ] {
        let mut document = example();
        *document.pointer_mut(pointer).unwrap() = value;
        assert!(!schema.is_valid(&document), "{pointer}");
    }
}

proptest! {
    /// Any bytes, and any cut or change of a good document, get an answer; and an accepted document
    /// is accepted again after it was written.
    #[test]
    fn any_bytes_get_an_answer(
        cut in 0..EXAMPLE.len(),
        length in 0usize..40,
        put in "[ -~]{0,12}",
    ) {
        let mut bytes = EXAMPLE.as_bytes().to_vec();
        let end = (cut + length).min(bytes.len());
        bytes.splice(cut..end, put.bytes());
        if let Ok(state) = DesiredState::parse(&bytes) {
            let again = DesiredState::parse(&serde_json::to_vec(&state).unwrap()).unwrap();
            prop_assert_eq!(again, state);
        }
        let _ = DesiredState::parse(put.as_bytes());
    }
}
