//! The words of errors: programs match the codes, people and documents rely on the rest.

use super::*;
use mvm_api::Problem;
use mvm_api::status::status;
use mvm_hypervisor::{Exit, Halt};
use mvm_model::{InstanceId, JobId, JobState, Mib, PoolRef, State};
use std::io::ErrorKind;

fn pool() -> PoolRef {
    "ci/build".parse().expect("a pool")
}

fn os_error(kind: ErrorKind) -> std::io::Error {
    std::io::Error::new(kind, "the cause")
}

/// Errors with their codes, details and hints.
fn machines() -> Vec<(Error, Code, &'static str, &'static str)> {
    let reference = || "ci/build/i-00000001".parse().expect("an instance");
    let exit = |console: &str| {
        let reason = "exit status 1".to_owned();
        Box::new(Exit { reason, console: console.to_owned(), clean: false })
    };
    let room = |memory| MachineError::NoRoom {
        path: "/srv/mvm".into(),
        free: Mib(100),
        wanted: Mib(1024),
        memory,
    };
    vec![
        (
            MachineError::NotRunning.into(),
            Code::WrongState,
            "the instance has no running machine",
            "start it with `mvm instance start` or `mvm instance wake`",
        ),
        (
            MachineError::WrongWay { verb: "wake", reference: reference(), state: State::Stopped }
                .into(),
            Code::WrongState,
            "cannot wake ci/build/i-00000001: it is stopped",
            "use `mvm instance start ci/build/i-00000001`",
        ),
        (
            MachineError::Died(exit("")).into(),
            Code::MachineDied,
            "the machine ended by itself: exit status 1\nlast lines of its console:\n(it printed nothing)",
            "",
        ),
        (
            Error::from(MachineError::Died(exit("oops"))).with_hint("look"),
            Code::MachineDied,
            "the machine ended by itself: exit status 1\nlast lines of its console:\noops",
            "look",
        ),
        (
            MachineError::NetworkLost { link: "mvt1".into(), reference: reference() }.into(),
            Code::NetworkLost,
            "its network link mvt1 was deleted under it: the machine cannot get it back",
            "start it again: mvm instance start ci/build/i-00000001",
        ),
        (
            Error::Shared(Arc::new(MachineError::Silent { seconds: 60 }.into())),
            Code::GuestSilent,
            "the guest does not answer: it has said nothing for 60 s",
            "",
        ),
        (
            MachineError::HeldBack(Halt::NoSpace { disk: None }).into(),
            Code::NoSpace,
            "the machine is paused: no space on the host; it goes on by itself when there is room",
            "free some space on the host's disk",
        ),
        (
            room(Mib(0)).into(),
            Code::NoSpace,
            "/srv/mvm has 100 MiB left; the machine is started only with 1024 MiB or more",
            FREE_SPACE,
        ),
        (
            room(Mib(512)).into(),
            Code::NoSpace,
            "/srv/mvm has 100 MiB left; the machine is started only with 1024 MiB or more, 512 of \
             them for its memory",
            FREE_SPACE,
        ),
    ]
}

fn pools() -> Vec<(Error, Code, &'static str, &'static str)> {
    let overlap = |by| PoolError::SubnetTaken { subnet: "10.1.0.0/24".parse().expect("net"), by };
    let (what, root) = ("10.1.0.1/24 of mva771-b20".to_owned(), "/old".into());
    vec![
        (
            overlap(Overlap::Agent { what, root, pid: 7 }).into(),
            Code::SubnetTaken,
            "10.1.0.0/24 overlaps with 10.1.0.1/24 of mva771-b20, of a state directory that is gone: \
             /old; its agent lives (pid 7)",
            "agent pid 7 has its lock open: end it first (kill 7), then see what is left: mvm net clean",
        ),
        (
            PoolError::TenantHasPools { tenant: pool().tenant, pools: vec![pool(), pool()] }.into(),
            Code::InUse,
            "tenant ci still has pools: ci/build, ci/build",
            "destroy them first: mvm pool destroy",
        ),
        (
            PoolError::PoolExists(pool()).into(),
            Code::Exists,
            "pool ci/build exists already, and differs",
            "change it with `mvm pool update`, or destroy it first",
        ),
        (
            mvm_image::Error::Busy { digest: "ab".into() }.into(),
            Code::Busy,
            "image ab is on its way here already; wait for that",
            "",
        ),
    ]
}

fn others() -> Vec<(Error, Code, &'static str, &'static str)> {
    let listen = "127.0.0.1:80".parse().expect("an address");
    vec![
        (
            Missing::InstanceId(InstanceId::from_number(1)).into(),
            Code::NotFound,
            "there is no instance i-00000001 any more",
            "it was destroyed in the meantime",
        ),
        (
            io("read /a", os_error(ErrorKind::PermissionDenied)),
            Code::Io,
            "cannot read /a: the cause",
            "",
        ),
        (
            io("write /a", os_error(ErrorKind::StorageFull)),
            Code::NoSpace,
            "cannot write /a: no space left on the disk",
            "free some space: mvm image gc, or destroy instances that are not needed",
        ),
        (
            JobError::NotAttached { id: JobId::from_number(1), state: JobState::Running }.into(),
            Code::WrongState,
            "job j-00000001 is running and attached to no client",
            "follow it with `mvm job logs -f j-00000001`",
        ),
        (
            JobError::NoRoom {
                disk: "/srv/mvm".into(),
                arriving: Mib(3),
                free: Mib(9),
                reserve: Mib(7),
            }
            .into(),
            Code::NoSpace,
            "/srv/mvm has 9 MiB left, of which 7 are kept back: the 3 MiB that arrive for this tenant \
             may not take more than they leave to others",
            FREE_SPACE,
        ),
        (
            FrontError::of_bind(listen, os_error(ErrorKind::AddrInUse)).into(),
            Code::PortInUse,
            "cannot listen on 127.0.0.1:80: the cause",
            "choose another port, or end what listens there: see `ss -ltnp`",
        ),
        (
            FrontError::of_bind(listen, os_error(ErrorKind::Other)).into(),
            Code::ListenFailed,
            "cannot listen on 127.0.0.1:80: the cause",
            "",
        ),
        (
            LeaseError::Length { seconds: 0, most: 86400 }.into(),
            Code::InvalidValue,
            "a lease of 0 s",
            "allowed are 1 to 86400 s",
        ),
        (
            NodeError::RootTooLong { path: "/srv/mvm".into(), longest: 4 }.into(),
            Code::RootTooLong,
            "the state directory /srv/mvm has 8 characters; a Unix socket's path allows 4",
            "choose a shorter --root (or MVM_ROOT)",
        ),
        (InternalError::NoJobId.into(), Code::Internal, "no free job id was drawn", ""),
    ]
}

#[test]
fn an_error_says_what_its_problem_document_says() {
    for (error, code, detail, hint) in machines().into_iter().chain(pools()).chain(others()) {
        assert_eq!((error.code(), &*error.hint()), (code.into(), hint), "{detail}");
        assert_eq!((error.to_string(), error.path()), (detail.to_owned(), ""), "no path");
        let problem = Problem::from(error);
        assert_eq!(problem, Problem::new(code, detail).hint(hint));
        assert_eq!(problem.status, status(code));
    }
}

#[test]
fn the_place_in_a_document_stands_before_the_message_and_apart_from_the_detail() {
    let fault = || Fault::new(Code::Conflict, "it is another").at("$.node_id").hint("look");
    let error = Error::from(fault());
    assert_eq!(
        (&*error.to_string(), &*error.detail()),
        ("$.node_id: it is another", "it is another")
    );
    assert_eq!(Problem::from(error), Problem::from(fault()));
    let step = "create pool ci/build".to_owned();
    let error = Error::Step { step, error: Box::new(fault().into()) };
    let said = error.to_string();
    let problem = Problem::from(error);
    assert_eq!(said, problem.to_string());
    assert_eq!(problem.detail, "cannot create pool ci/build: it is another");
    assert_eq!((&*problem.path, &*problem.hint), ("$.node_id", "look"));
}

#[test]
fn what_another_process_has_said_is_passed_on_as_it_came() {
    let code = AnyCode::of("cannot_levitate");
    let came = Problem { status: 418, request_id: "r-1".into(), ..Problem::new(code, "too heavy") };
    for error in [
        Error::from(ClientError::Problem(Box::new(came.clone()))),
        mvm_identity::Error::from(ClientError::Problem(Box::new(came.clone()))).into(),
    ] {
        assert_eq!(error.code(), came.code);
        assert_eq!(Problem::from(error), came);
    }
    let unreachable = || ClientError::Unreachable {
        at: "10.0.0.1:8443".into(),
        cause: os_error(ErrorKind::ConnectionRefused),
    };
    assert_eq!(Problem::from(Error::from(unreachable())), unreachable().into_problem());
}
