//! Pools behind a port: a connection wakes an instance, and an idle instance goes to sleep.

use crate::lab::{Lab, run, text, wait_for};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;

impl Lab {
    /// Runs `work` in the lab's network namespace.
    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let netns = std::fs::File::open(format!("/run/netns/{}", self.netns)).expect("namespace");
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                let kind = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(netns.as_fd(), kind).expect("namespace");
                work()
            });
            worker.join().expect("thread")
        })
    }

    fn connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        let stream = self.inside(|| TcpStream::connect(to))?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(stream)
    }

    /// Exposes the pool at a free port of the loopback interface.
    fn expose(&self, pool: &str, to: &str, options: &[&str]) -> SocketAddr {
        run(Command::new("ip").args(["-n", &self.netns, "link", "set", "lo", "up"]));
        let words = ["pool", "expose", pool, "--listen", "127.0.0.1:0", "--to", to];
        let view = self.json(&[&words[..], options].concat());
        view["listen"].as_str().expect("listen").parse().expect("address")
    }

    /// Returns the status of the pool's front.
    fn front(&self, pool: &str) -> Value {
        self.json(&["pool", "expose", pool, "--list"])[0].clone()
    }

    /// Returns the value of a sample of the agent's metrics.
    fn metric(&self, sample: &str) -> String {
        let metrics = self.ok(&["metrics"]);
        let found = metrics.lines().find_map(|line| line.strip_prefix(sample));
        found.unwrap_or_else(|| panic!("{sample}: {metrics}")).trim().to_owned()
    }

    /// Returns the instances of a front once all of them are asleep again.
    fn at_zero(&self, pool: &str) -> Vec<String> {
        wait_for("the pool to go back to zero", || {
            let front = self.front(pool);
            let leases = self.json(&["lease", "list", pool]);
            front["serving"].as_array().is_some_and(Vec::is_empty)
                && leases.as_array().is_some_and(Vec::is_empty)
        });
        self.ids(pool, "sleeping")
    }
}

fn says_back(stream: &mut TcpStream, words: &str) {
    stream.write_all(words.as_bytes()).expect("write");
    let mut back = vec![0; words.len()];
    stream.read_exact(&mut back).expect("read");
    assert_eq!(text(&back), words);
}

/// Makes a lab with simulated machines. Port 7 of a simulated guest echoes what it is sent.
fn simulated(name: &str, net: &str) -> Lab {
    let lab = Lab::simulated(name);
    lab.tenant_and_pool("ci", net);
    lab.ok(&["pool", "scale", "ci/small", "--sleeping", "1", "--wait"]);
    lab
}

#[test]
fn a_burst_wakes_one_and_the_idle_one_is_woken_again() {
    let lab = simulated("burst", "21");
    let to = lab.expose("ci/small", "7", &["--idle", "1"]);
    let mut open: Vec<TcpStream> = std::thread::scope(|scope| {
        let connect = || lab.connect(to).expect("connect");
        let burst: Vec<_> = (0..10).map(|_| scope.spawn(connect)).collect();
        burst.into_iter().map(|one| one.join().expect("thread")).collect()
    });
    for (n, stream) in open.iter_mut().enumerate() {
        says_back(stream, &format!("number {n}"));
    }
    let front = lab.front("ci/small");
    assert_eq!((&front["connections"], &front["waiting"]), (&10.into(), &0.into()), "{front}");
    let serving = front["serving"].as_array().expect("list");
    assert_eq!(serving.len(), 1, "{front}");
    let vm = serving[0]["instance"].as_str().expect("instance").to_owned();
    let pool = "{tenant=\"ci\",pool=\"small\"";
    assert_eq!(lab.metric(&format!("mvm_expose_wakes_total{pool},outcome=\"ok\"}}")), "1");
    assert_eq!(lab.metric(&format!("mvm_expose_connections{pool}}}")), "10");
    assert_eq!(lab.metric(&format!("mvm_expose_first_byte_seconds_count{pool}}}")), "10");
    let lease = lab.json(&["lease", "list", "ci/small"])[0].clone();
    assert_eq!(lease["purpose"], "expose");
    assert_eq!(lease["holder"], format!("expose:{to}"));

    // A half-close is passed on: the guest sees the end, and its answer still arrives.
    let mut half = open.pop().expect("one");
    half.write_all(b"last words").expect("write");
    half.shutdown(Shutdown::Write).expect("shutdown");
    let mut rest = String::new();
    half.read_to_string(&mut rest).expect("read");
    assert_eq!(rest, "last words");

    // A client that never reads does not delay the others.
    let slow = open.pop().expect("one");
    slow.set_nonblocking(true).expect("nonblocking");
    let stuck = std::iter::from_fn(|| Some((&slow).write(&[0; 64 << 10])));
    let error = stuck.map_while(|wrote| Some(wrote.err())).flatten().next().expect("full");
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    says_back(&mut open[0], "still here");

    drop((open, slow, half));
    assert!(lab.at_zero("ci/small").contains(&vm), "it sleeps, though the pool recycles by reset");
    let mut again = lab.connect(to).expect("connect");
    says_back(&mut again, "again");
    assert_eq!(lab.front("ci/small")["serving"][0]["instance"], vm.as_str(), "the same one");
    // A job gets another instance, since this one is in use.
    wait_for("the spare", || lab.ready("ci/small")["sleeping"] == 1);
    let job = lab.mvm(&["run", "ci/small", "--", "sh", "-c", "cat /etc/hostname"]).output();
    let name = text(&job.expect("mvm").stdout);
    assert!(!name.is_empty() && !vm.ends_with(name.trim().trim_start_matches("small-")), "{name}");
}

#[test]
fn a_front_outlives_its_agent() {
    let lab = simulated("again", "22");
    let to = lab.expose("ci/small", "7", &["--idle", "1", "--max-connections", "8"]);
    let mut open = lab.connect(to).expect("connect");
    says_back(&mut open, "before");
    let vm = lab.front("ci/small")["serving"][0]["instance"].clone();
    lab.kill_agent();
    let ended = open.read(&mut [0; 8]);
    assert_eq!(ended.expect_err("cut off").kind(), ErrorKind::ConnectionReset);
    let front = lab.front("ci/small");
    assert_eq!(
        (&front["listen"], &front["limits"]["max_connections"]),
        (&to.to_string().into(), &8.into())
    );
    let mut after = lab.connect(to).expect("connect");
    says_back(&mut after, "after");
    let front = lab.front("ci/small");
    assert_eq!(front["serving"][0]["instance"], vm, "it serves on");
    drop(after);
    let vm = vm.as_str().expect("instance").to_owned();
    assert!(lab.at_zero("ci/small").contains(&vm));
    // An agent is killed while it wakes an instance. The next one completes or undoes that, and
    // serves.
    for _ in 0..3 {
        let waking = lab.connect(to).expect("connect");
        lab.kill_agent();
        drop(waking);
        lab.front("ci/small");
        let mut next = lab.connect(to).expect("connect");
        says_back(&mut next, "next");
        drop(next);
        lab.at_zero("ci/small");
    }
    lab.ok(&["pool", "destroy", "ci/small"]);
    assert_eq!(lab.json(&["pool", "expose", "--list"]), serde_json::json!([]));
    assert!(lab.connect(to).is_err(), "nobody listens any more");
    lab.ok(&["tenant", "destroy", "ci"]);
}

#[test]
fn room_at_the_instances_decides_who_serves() {
    let lab = simulated("room", "23");
    let to = lab.expose("ci/small", "7", &["--max-connections", "1", "--max-instances", "2"]);
    let mut first = lab.connect(to).expect("connect");
    says_back(&mut first, "first");
    let mut second = lab.connect(to).expect("connect");
    says_back(&mut second, "second");
    assert_eq!(lab.front("ci/small")["serving"].as_array().map(Vec::len), Some(2));
    let mut third = lab.connect(to).expect("connect");
    third.write_all(b"third").expect("write");
    wait_for("the third to wait", || lab.front("ci/small")["waiting"] == 1);
    drop(first);
    let mut back = [0; 5];
    third.read_exact(&mut back).expect("there is room now");
    assert_eq!(&back, b"third");
    // A user ends the lease: the instance's connections end, and the next connection wakes one
    // again.
    let lease = lab.json(&["lease", "list", "ci/small"])[0]["id"].clone();
    lab.ok(&["lease", "release", lease.as_str().expect("id")]);
    drop((second, third));
    says_back(&mut lab.connect(to).expect("connect"), "on");
}

#[test]
fn what_cannot_be_exposed_is_refused() {
    let lab = simulated("refuse", "24");
    lab.tenant_and_unbuilt_pool("other", "25");
    let to = lab.expose("ci/small", "7", &[]);
    let taken = lab.inside(|| TcpListener::bind("127.0.0.1:0").expect("bind"));
    let taken = taken.local_addr().expect("address").to_string();
    let at = to.to_string();
    let expose = |pool, listen, port| ["pool", "expose", pool, "--listen", listen, "--to", port];
    lab.refused(&expose("ci/small", &taken, "7"), "port_in_use");
    lab.refused(&expose("ci/small", "192.0.2.1:80", "7"), "listen_failed");
    lab.refused(&expose("other/small", &at, "7"), "in_use");
    lab.refused(&expose("ci/small", &at, "8"), "in_use");
    lab.refused(&expose("ci/none", "127.0.0.1:0", "7"), "not_found");
    lab.refused(&expose("ci/small", "127.0.0.1:0", "0"), "invalid_value");
    let many = [&expose("ci/small", &at, "7")[..], &["--max-connections", "101"]].concat();
    lab.refused(&many, "invalid_value");
    let free = ["pool", "unexpose", "ci/small", "--listen", &taken];
    lab.refused(&free, "not_found");
    let changed = [&expose("ci/small", &at, "7")[..], &["--idle", "7"]].concat();
    assert_eq!(lab.json(&changed)["limits"]["idle_s"], 7, "said again, it changes the limits");

    // If nothing listens on the guest's port, or no instance can be made, the client gets a reset.
    let closed = lab.expose("ci/small", "9", &[]);
    let unbuilt = lab.expose("other/small", "7", &[]);
    for to in [closed, unbuilt] {
        let mut stream = lab.connect(to).expect("connect");
        let error = stream.read(&mut [0; 8]).expect_err("a reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    lab.ok(&["pool", "unexpose", "ci/small", "--listen", &closed.to_string()]);
    lab.ok(&["pool", "unexpose", "ci/small"]);
    lab.ok(&["pool", "unexpose", "ci/small"]);
    assert!(lab.connect(to).is_err() && lab.connect(closed).is_err());
    wait_for("the used ones to go", || {
        let all = lab.json(&["instance", "list", "ci/small"]);
        all.as_array().map(Vec::len) == Some(1)
    });
}

/// A real machine with a real server, from asleep to asleep.
#[test]
fn a_web_server_sleeps_until_it_is_asked() {
    let lab = Lab::new("web");
    lab.tenant_and_unbuilt_pool("ci", "26");
    let serve = "mkdir /www; echo served > /www/index.html; busybox httpd -p 8080 -h /www";
    lab.ok(&["pool", "update", "ci/small", "--prewarm", serve]);
    lab.build("ci/small");
    lab.ok(&["pool", "scale", "ci/small", "--sleeping", "1", "--wait"]);
    assert_eq!(lab.machines(), 0);
    let to = lab.expose("ci/small", "8080", &["--idle", "2"]);
    let ask = || {
        let mut stream = lab.connect(to).expect("connect");
        stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").expect("write");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("read");
        assert!(answer.contains(" 200 OK") && answer.ends_with("served\n"), "{answer}");
    };
    std::thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(ask);
        }
    });
    let pool = "{tenant=\"ci\",pool=\"small\"";
    assert_eq!(lab.metric(&format!("mvm_expose_wakes_total{pool},outcome=\"ok\"}}")), "1");
    lab.at_zero("ci/small");
    assert_eq!(lab.machines(), 0, "the pool costs a file on disk again");
    let begun = std::time::Instant::now();
    ask();
    println!("asleep to answered: {:?}", begun.elapsed());
    lab.kill_agent();
    lab.front("ci/small");
    ask();
    lab.at_zero("ci/small");
}
