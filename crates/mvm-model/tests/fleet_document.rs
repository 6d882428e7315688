//! The fleet's document: the example is accepted, faulty documents are refused with the path of the
//! fault, and the shipped schema is that of the types.

use mvm_model::Code;
use mvm_model::{DesiredState, FleetState, Mib};
use proptest::prelude::*;
use serde_json::{Value, json};

const EXAMPLE: &str = include_str!("../../../examples/fleet.json");
const SCHEMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/schema/fleet.v1.json");

fn example() -> Value {
    serde_json::from_str(EXAMPLE).unwrap()
}

#[test]
fn a_pool_of_which_its_tenants_quotas_hold_no_machine_is_refused() {
    let mut document = FleetState::parse(EXAMPLE.as_bytes()).unwrap();
    assert_eq!(document.admit_machines(), Ok(()));
    document.tenants[0].quotas.max_mem_mib = Mib(1);
    let fault = document.admit_machines().expect_err("refused");
    assert_eq!(fault.code, Code::QuotaExceeded);
    assert_eq!(fault.path, "$.tenants[0].pools[0].instance_resources.mem_mib");
}

#[test]
fn the_example_is_taken_and_comes_back_equal() {
    let state = FleetState::parse(EXAMPLE.as_bytes()).unwrap();
    assert_eq!((state.fleet_id.as_str(), state.node_grace_s), ("ci-fleet", 60));
    let rules = &state.tenants[0].pools[0].placement;
    assert_eq!((rules.headroom_percent, rules.min_nodes), (20, 3));
    let again = serde_json::to_vec(&state).unwrap();
    assert_eq!(FleetState::parse(&again).unwrap(), state);
}

#[test]
fn each_fault_is_refused_with_its_path() {
    let pool = "$.tenants[0].pools[0]";
    let cases = [
        ("/schema_version", json!(2), Code::UnsupportedVersion, "$.schema_version".to_owned()),
        ("/fleet_id", json!("Fleet_1"), Code::InvalidDocument, "$.fleet_id".into()),
        ("/node_grace_s", json!(0), Code::InvalidValue, "$.node_grace_s".into()),
        ("/tenants/0/weight", json!(0), Code::InvalidValue, "$.tenants[0].weight".into()),
        (
            "/tenants/0/pools/0/desired_counts/warm",
            json!(65),
            Code::QuotaExceeded,
            format!("{pool}.desired_counts.warm"),
        ),
        (
            "/tenants/0/pools/0/instance_resources/vcpus",
            json!(0),
            Code::InvalidValue,
            format!("{pool}.instance_resources.vcpus"),
        ),
        (
            "/tenants/0/pools/0/placement/max_per_node",
            json!(0),
            Code::InvalidValue,
            format!("{pool}.placement.max_per_node"),
        ),
        (
            "/tenants/0/pools/0/placement/spread/max_skew",
            json!(0),
            Code::InvalidValue,
            format!("{pool}.placement.spread.max_skew"),
        ),
        (
            "/tenants/0/pools/0/placement/spread/key",
            json!("zo ne"),
            Code::InvalidValue,
            format!("{pool}.placement.spread.key"),
        ),
        (
            "/tenants/0/pools/0/placement/require/arch",
            json!("x86_64"),
            Code::InvalidDocument,
            format!("{pool}.placement.require.arch"),
        ),
        (
            "/tenants/0/pools/0/placement/require/arch/0",
            json!(""),
            Code::InvalidValue,
            format!("{pool}.placement.require.arch[0]"),
        ),
        (
            "/tenants/0/pools/0/placement/prefer/0/weight",
            json!(101),
            Code::InvalidValue,
            format!("{pool}.placement.prefer[0].weight"),
        ),
        (
            "/tenants/0/pools/0/placement/headroom_percent",
            json!(91),
            Code::InvalidValue,
            format!("{pool}.placement.headroom_percent"),
        ),
        (
            "/tenants/0/pools/0/placement/min_nodes",
            json!(0),
            Code::InvalidValue,
            format!("{pool}.placement.min_nodes"),
        ),
    ];
    for (pointer, value, code, path) in cases {
        let mut document = example();
        *document.pointer_mut(pointer).expect(pointer) = value;
        let fault = FleetState::parse(document.to_string().as_bytes()).unwrap_err();
        assert_eq!((fault.code, fault.path), (code, path), "{}", fault.message);
    }
}

#[test]
fn a_node_has_the_whole_subnet_for_itself() {
    let mut document = example();
    *document.pointer_mut("/tenants/0/network/ipv4_subnet").unwrap() = json!("10.240.20.0/28");
    FleetState::parse(document.to_string().as_bytes()).unwrap();
}

#[test]
fn a_pool_has_the_fields_of_a_nodes_pool_and_its_placement() {
    let fields = |schema: Value, definition: &str| -> Vec<String> {
        let properties = schema.pointer(&format!("/$defs/{definition}/properties")).unwrap();
        properties.as_object().unwrap().keys().cloned().collect()
    };
    let mut node = fields(DesiredState::json_schema(), "DesiredPool");
    // The coordinator alone decides which node sends an image to which.
    node.retain(|field| field != "revision_from");
    node.push("placement".into());
    node.sort();
    let mut fleet = fields(FleetState::json_schema(), "FleetPool");
    fleet.sort();
    assert_eq!(fleet, node);
}

#[test]
fn the_schema_that_is_shipped_is_that_of_the_types() {
    let made = serde_json::to_string_pretty(&FleetState::json_schema()).unwrap() + "\n";
    if std::env::var_os("MVM_WRITE_SCHEMA").is_some() {
        std::fs::write(SCHEMA, &made).unwrap();
    }
    let shipped = std::fs::read_to_string(SCHEMA).unwrap_or_default();
    assert!(made == shipped, "write it again: MVM_WRITE_SCHEMA=1 cargo test -p mvm-model");
}

#[test]
fn the_schema_takes_what_the_parser_takes_and_refuses_unknown_fields() {
    let schema = jsonschema::validator_for(&FleetState::json_schema()).unwrap();
    assert!(schema.is_valid(&example()));
    for change in ["/tenants/0/pools/0/placement", "/tenants/0", "/tenants/0/pools/0", ""] {
        let mut document = example();
        let object = document.pointer_mut(change).unwrap().as_object_mut().unwrap();
        object.insert("unknown".into(), json!(1));
        assert!(!schema.is_valid(&document), "{change}");
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
        if let Ok(state) = FleetState::parse(&bytes) {
            let again = FleetState::parse(&serde_json::to_vec(&state).unwrap()).unwrap();
            prop_assert_eq!(again, state);
        }
        let _ = FleetState::parse(put.as_bytes());
    }
}
