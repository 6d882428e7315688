//! Drives a real guest under QEMU (TCG) through everything that the channel has to survive, and
//! prints how long each step took. A failed step ends it with a panic; the machine ends with it.
//!
//! `lab VMLINUX INITRD ROOT.erofs WORKDIR`: the initrd holds the guest binary as `/init`; the root
//! has a shell, coreutils and sshd. WORKDIR is made, and may be removed afterwards.

use mvm_code::Code;
use mvm_guest::channel::Channel;
use mvm_guest::exec::{ExecStream, Output};
use mvm_guest::protocol::{Adopt, ExecRequest, Exit, GuestNetwork, SshIdentity, Tty};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const MEMORY_MIB: u32 = 256;
const DEADLINE: Duration = Duration::from_secs(60);

/// One machine; dropping it kills the process.
struct Machine {
    process: Child,
    dir: PathBuf,
    started: Instant,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Machine {
    fn boot(files: &Files, dir: &Path, incoming: bool) -> Outcome<Machine> {
        for socket in ["qmp.sock", "agent.sock"] {
            let _ = std::fs::remove_file(dir.join(socket));
        }
        let at = |name: &str| dir.join(name).display().to_string();
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", "qemu64", "-smp", "1"]);
        qemu.args(["-M", "pc,usb=off,vmport=off,hpet=off,memory-backend=mem"]);
        qemu.args(["-m", &MEMORY_MIB.to_string()]);
        let memory = at("memory");
        qemu.args([
            "-object".to_owned(),
            format!("memory-backend-file,id=mem,mem-path={memory},size={MEMORY_MIB}M,share=on"),
            "-serial".to_owned(),
            format!("file:{}", at("console.log")),
            "-qmp".to_owned(),
            format!("unix:{},server=on,wait=off", at("qmp.sock")),
            "-chardev".to_owned(),
            format!("socket,id=agent,path={},server=on,wait=off", at("agent.sock")),
        ]);
        qemu.args(["-device", "virtio-serial-pci,max_ports=2"]);
        qemu.args(["-device", "virtserialport,chardev=agent,name=mvm.agent.0,nr=1"]);
        qemu.args(["-object", "rng-builtin,id=rng", "-device", "virtio-rng-pci,rng=rng"]);
        qemu.args(["-netdev", "user,id=net,restrict=on", "-device", "virtio-net-pci,netdev=net"]);
        let root = files.root.display().to_string();
        for (id, file, ro) in [
            ("root", root, "on"),
            ("scratch", at("scratch.img"), "off"),
            ("data", at("data.img"), "off"),
        ] {
            qemu.arg("-drive");
            qemu.arg(format!("if=none,id={id},file={file},format=raw,readonly={ro}"));
            qemu.args(["-device", &format!("virtio-blk-pci,drive={id},serial={id}")]);
        }
        qemu.arg("-kernel").arg(&files.kernel).arg("-initrd").arg(&files.initrd);
        qemu.args([
            "-append",
            "console=ttyS0 quiet loglevel=1 panic=-1 reboot=t nokaslr mitigations=off \
             random.trust_cpu=on no_timer_check cryptomgr.notests",
        ]);
        if incoming {
            qemu.args(["-S", "-incoming", "defer"]);
        }
        let started = Instant::now();
        let process = qemu.stdin(Stdio::null()).spawn()?;
        Ok(Machine { process, dir: dir.to_owned(), started })
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("agent.sock")
    }

    async fn qmp(&self) -> Outcome<Qmp> {
        loop {
            match UnixStream::connect(self.dir.join("qmp.sock")).await {
                Ok(stream) => {
                    let mut qmp = Qmp(BufReader::new(stream));
                    qmp.line().await?;
                    qmp.ask("qmp_capabilities", serde_json::json!({})).await?;
                    return Ok(qmp);
                }
                Err(_) if self.started.elapsed() < DEADLINE => {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                Err(cause) => return Err(cause.into()),
            }
        }
    }
}

/// The part of QMP that this program needs.
struct Qmp(BufReader<UnixStream>);

impl Qmp {
    async fn line(&mut self) -> Outcome<serde_json::Value> {
        let mut line = String::new();
        self.0.read_line(&mut line).await?;
        Ok(serde_json::from_str(&line)?)
    }

    async fn ask(&mut self, what: &str, with: serde_json::Value) -> Outcome<serde_json::Value> {
        let words = serde_json::json!({ "execute": what, "arguments": with });
        self.0.get_mut().write_all(format!("{words}\n").as_bytes()).await?;
        loop {
            let mut reply = self.line().await?;
            if !reply["error"].is_null() {
                return Err(format!("{what}: {}", reply["error"]).into());
            }
            if !reply["return"].is_null() {
                return Ok(reply["return"].take());
            }
        }
    }

    async fn ignore_shared(&mut self) -> Outcome {
        let wanted = serde_json::json!([{ "capability": "x-ignore-shared", "state": true }]);
        let with = serde_json::json!({ "capabilities": wanted });
        self.ask("migrate-set-capabilities", with).await.map(drop)
    }

    async fn until(&mut self, what: &str, status: &str) -> Outcome {
        loop {
            let now = self.ask(what, serde_json::json!({})).await?;
            match now["status"].as_str() {
                Some(found) if found == status => return Ok(()),
                Some("failed") => return Err(format!("{what}: failed").into()),
                _ => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }
}

struct Files {
    kernel: PathBuf,
    initrd: PathBuf,
    root: PathBuf,
}

fn sh(script: &str) -> ExecRequest {
    ExecRequest { argv: ["sh", "-c", script].map(str::to_owned).to_vec(), ..ExecRequest::default() }
}

async fn run(channel: &Channel, script: &str) -> Outcome<String> {
    let (out, err, exit) = channel.exec(sh(script)).await?.finish().await?;
    let (out, err) = (String::from_utf8_lossy(&out), String::from_utf8_lossy(&err));
    if exit.code != Some(0) {
        return Err(format!("{script}: {exit:?}: {out}{err}").into());
    }
    Ok(out.trim().to_owned())
}

#[allow(clippy::disallowed_methods)] // Compared with the wall clock of a guest.
fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

fn clock() -> Adopt {
    Adopt { wall_clock_ns: Some(now_ns()), ..Adopt::default() }
}

fn percentiles(name: &str, mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!("{name}: p50 {:.1} p95 {:.1} max {:.1} ms", at(0.5), at(0.95), at(1.0));
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

#[tokio::main]
async fn main() -> Outcome {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    match &arguments[..] {
        [victim, socket] if victim.as_os_str() == "victim" => flood(socket).await,
        [kernel, initrd, root, dir] => {
            let [kernel, initrd, root] = [kernel, initrd, root].map(std::path::absolute);
            let files = Files { kernel: kernel?, initrd: initrd?, root: root? };
            all(&files, dir).await
        }
        _ => Err("lab VMLINUX INITRD ROOT.erofs WORKDIR".into()),
    }
}

async fn all(files: &Files, dir: &Path) -> Outcome {
    std::fs::create_dir_all(dir)?;
    for (name, size) in [("scratch.img", 512 << 20), ("data.img", 64 << 20)] {
        let path = dir.join(name);
        std::fs::File::create(&path)?.set_len(size)?;
        let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&path).status()?;
        assert!(made.success(), "mkfs.ext4 failed");
    }
    let machine = Machine::boot(files, dir, false)?;
    let channel = Channel::connect(&machine.socket(), None, DEADLINE).await?;
    println!("spawn to agent ready: {:.0} ms", ms(machine.started));
    println!("{:?}", channel.hello().await?);
    programs(&channel).await?;
    identity(&channel, dir).await?;
    ssh(&channel, dir).await?;
    let channel = crashed(&machine, channel).await?;
    ssh(&channel, dir).await?;
    copies(&channel, dir).await?;
    let channel = torn(&machine, channel).await?;
    warm(&machine, &channel).await?;
    let (machine, channel) = sleep(files, machine, channel).await?;
    shutdown(machine, &channel).await
}

async fn programs(channel: &Channel) -> Outcome {
    println!("{}", run(channel, "cat /proc/mounts; ls -la /; env; id").await?);
    let mut times = Vec::new();
    for _ in 0..30 {
        let start = Instant::now();
        channel.hello().await?;
        times.push(ms(start));
    }
    percentiles("round trip", times);
    for argv in
        [&["/bin/busybox", "echo", "hi"][..], &["/bin/echo", "hi"], &["sh", "-c", "echo hi"]]
    {
        let (mut started, mut first, mut ended) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..20 {
            let argv = argv.iter().map(ToString::to_string).collect();
            let start = Instant::now();
            let mut stream = channel.exec(ExecRequest { argv, ..ExecRequest::default() }).await?;
            started.push(ms(start));
            stream.output.next().await?;
            first.push(ms(start));
            stream.finish().await?;
            ended.push(ms(start));
        }
        percentiles(&format!("{argv:?}: started"), started);
        percentiles(&format!("{argv:?}: first byte"), first);
        percentiles(&format!("{argv:?}: exit"), ended);
    }
    let (_, _, exit) = channel.exec(sh("kill -9 $$")).await?.finish().await?;
    assert_eq!(exit, Exit { code: None, signal: Some(9) });
    let missing = ExecRequest { argv: vec!["no-such".to_owned()], ..sh("") };
    let code = channel.exec(missing).await.expect_err("it is not there").code();
    assert_eq!(code, Code::CommandNotFound);
    let tty = Some(Tty { rows: 33, cols: 99, term: "xterm".to_owned() });
    let request = ExecRequest { tty, ..sh("stty size; tty; read x; stty size") };
    let mut terminal = channel.exec(request).await?;
    let mut said = String::new();
    while !said.contains("/dev/pts") {
        let Output::Stdout(bytes) = terminal.output.next().await? else { panic!("{said}") };
        said.push_str(&String::from_utf8_lossy(&bytes));
    }
    terminal.input.resize(40, 111).await?;
    terminal.input.write(b"go\n").await?;
    let (out, _, exit) = terminal.finish().await?;
    said.push_str(&String::from_utf8_lossy(&out));
    assert!(exit.code == Some(0) && said.contains("33 99") && said.contains("40 111"), "{said}");
    let start = Instant::now();
    let (_, _, exit) = channel.exec(sh("sleep 60 & echo done")).await?.finish().await?;
    assert_eq!(exit.code, Some(0));
    println!("exit with a child that holds the pipe: {:.0} ms", ms(start));
    orphans(channel).await?;
    flow(channel).await
}

/// No ended process stays a zombie, whichever process its parent was.
async fn orphans(channel: &Channel) -> Outcome {
    run(channel, "for i in 1 2 3 4 5; do (sleep 0.1 & sleep 0.2 &) ; done; sleep 0.6").await?;
    let zombies = run(channel, "cat /proc/[0-9]*/stat | grep -c ') Z ' || true").await?;
    assert_eq!(zombies, "0", "zombies");
    Ok(())
}

async fn flow(channel: &Channel) -> Outcome {
    let bytes: Vec<u8> = (0..10_000_000u32).map(|n| (n * 7 % 251) as u8).collect();
    let start = Instant::now();
    let request = ExecRequest { stdin: true, ..sh("cat") };
    let ExecStream { mut output, mut input, .. } = channel.exec(request).await?;
    let sent = bytes.clone();
    let sending = tokio::spawn(async move {
        let sent = input.write(&sent).await;
        sent.and(input.close().await).map(|()| input)
    });
    let mut found = Vec::new();
    let exit = loop {
        match output.next().await? {
            Output::Stdout(piece) => found.extend(piece),
            Output::Stderr(piece) => panic!("{}", String::from_utf8_lossy(&piece)),
            Output::Taken(_) => {}
            Output::Exit(exit) => break exit,
        }
    };
    sending.await??;
    assert!(exit.code == Some(0) && found == bytes, "10 MB through cat came back different");
    println!("10 MB through cat and back: {:.0} ms", ms(start));
    Ok(())
}

async fn identity(channel: &Channel, dir: &Path) -> Outcome {
    let key = dir.join("key");
    for name in ["key", "host"] {
        let _ = std::fs::remove_file(dir.join(name));
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(dir.join(name))
            .status()?;
        assert!(made.success(), "ssh-keygen failed");
    }
    let public = std::fs::read_to_string(key.with_extension("pub"))?;
    let whole = Adopt {
        hostname: Some("i-lab".to_owned()),
        machine_id: Some("0123456789abcdef0123456789abcdef".to_owned()),
        entropy: Some(vec![7; 200]),
        network: Some(GuestNetwork {
            address: "10.0.2.77/24".to_owned(),
            gateway: "10.0.2.2".to_owned(),
            dns: vec!["10.0.2.3".to_owned()],
            mac: Some("02:00:00:00:00:77".to_owned()),
            search: Vec::new(),
            mtu: None,
        }),
        ssh: Some(SshIdentity {
            host_key: std::fs::read_to_string(dir.join("host"))?,
            authorized_keys: vec![public.trim().to_owned()],
            port: 22,
        }),
        ..clock()
    };
    for round in ["first", "again"] {
        let start = Instant::now();
        channel.adopt(&whole).await?;
        println!("adopt, {round}: {:.1} ms", ms(start));
    }
    let seen = run(channel, "uname -n; cat /etc/machine-id /etc/resolv.conf; ip -4 addr; ip route; ip link; cat /etc/passwd").await?;
    for wanted in ["i-lab", "0123456789abcdef", "10.0.2.77/24", "via 10.0.2.2", "02:00:00:00:00:77"]
    {
        assert!(seen.contains(wanted), "{wanted} is missing in {seen}");
    }
    let skew = run(channel, "date +%s%N").await?.parse::<u64>()?.abs_diff(now_ns());
    println!("clock off by {} ms\n{:?}", skew / 1_000_000, channel.stats().await?);
    Ok(())
}

/// A real OpenSSH client connects through the channel, by way of a port of the host's loopback.
async fn ssh(channel: &Channel, dir: &Path) -> Outcome {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port().to_string();
    let through = channel.clone();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            if let Ok(mut guest) = through.dial(22).await {
                let _ = tokio::io::copy_bidirectional(&mut client, &mut guest).await;
            }
        }
    });
    let host_key = std::fs::read_to_string(dir.join("host.pub"))?;
    std::fs::write(dir.join("known"), format!("[127.0.0.1]:{port} {host_key}"))?;
    let start = Instant::now();
    let output = tokio::process::Command::new("ssh")
        .args(["-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes"])
        .args(["-o", &format!("UserKnownHostsFile={}", dir.join("known").display())])
        .args(["-i", &dir.join("key").display().to_string(), "-p", &port, "root@127.0.0.1"])
        .args(["--", "echo $PATH; exit 9"])
        .output()
        .await?;
    println!("ssh: {:.0} ms: {}", ms(start), String::from_utf8_lossy(&output.stdout).trim());
    let log = run(channel, "cat /run/mvm/ssh/log").await?;
    assert_eq!(output.status.code(), Some(9), "{output:?}\n{log}");
    Ok(())
}

/// The agent dies: the host notices, and PID 1 starts another.
async fn crashed(machine: &Machine, channel: Channel) -> Outcome<Channel> {
    let start = Instant::now();
    // The program is kept in a variable: dropping it would end the shell before it has killed the
    // agent.
    let _program = channel.exec(sh("kill -9 $PPID")).await;
    while !channel.is_closed() {
        assert!(start.elapsed() < Duration::from_secs(10), "nobody told the host");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let channel = Channel::connect(&machine.socket(), None, DEADLINE).await?;
    channel.hello().await?;
    println!("agent killed, to the next one's answer: {:.0} ms", ms(start));
    Ok(channel)
}

async fn copies(channel: &Channel, dir: &Path) -> Outcome {
    let script = "mkdir -p /data/d && cd /data/d && head -c 5000000 /dev/urandom > f && ln -s f l \
                  && chmod 751 f && touch -d @1000000000 f && sha256sum f";
    let sum = run(channel, script).await?;
    let archive = dir.join("archive.tar");
    let start = Instant::now();
    channel.get("/data/d", tokio::fs::File::create(&archive).await?).await?;
    println!("get 5 MB: {:.0} ms", ms(start));
    let start = Instant::now();
    channel.put("/data/in", tokio::fs::File::open(&archive).await?).await?;
    println!("put 5 MB: {:.0} ms", ms(start));
    let script = "cd /data/in/d && sha256sum f && stat -c '%a %Y' f && readlink l";
    assert_eq!(run(channel, script).await?, format!("{sum}\n751 1000000000\nf"));
    let error = channel.get("/nowhere", tokio::io::sink()).await.expect_err("nowhere");
    assert_eq!(error.code(), Code::NotFound);
    run(channel, "head -c 100000000 /dev/zero > /data/full || true").await?;
    let error = channel.put("/data/more", tokio::fs::File::open(&archive).await?).await;
    assert_eq!(error.expect_err("it is full").code(), Code::NoSpace);
    run(channel, "rm /data/full").await.map(drop)
}

/// Acts as the host that is killed: moves bytes both ways without end.
async fn flood(socket: &Path) -> Outcome {
    let channel = Channel::connect(socket, None, DEADLINE).await?;
    let request = ExecRequest { stdin: true, ..sh("exec cat") };
    let ExecStream { mut output, mut input, .. } = channel.exec(request).await?;
    tokio::spawn(async move { while input.write(&[0xf5; 100_000]).await.is_ok() {} });
    println!("up");
    loop {
        output.next().await?;
    }
}

/// Hosts are killed in mid-transfer; the next one is served at once, and nothing is left running.
async fn torn(machine: &Machine, channel: Channel) -> Outcome<Channel> {
    channel.close().await;
    let mut times = Vec::new();
    for round in 0..8u64 {
        let mut victim = tokio::process::Command::new(std::env::current_exe()?)
            .arg("victim")
            .arg(machine.socket())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut word = [0; 3];
        victim.stdout.as_mut().ok_or("no pipe")?.read_exact(&mut word).await?;
        tokio::time::sleep(Duration::from_millis(200 + 37 * round)).await;
        victim.kill().await?;
        let start = Instant::now();
        let channel = Channel::connect(&machine.socket(), None, DEADLINE).await?;
        channel.hello().await?;
        times.push(ms(start));
        if round % 2 == 1 {
            drop(channel);
        } else {
            channel.close().await;
        }
    }
    percentiles("host killed in mid-transfer, to the next one's answer", times);
    let channel = Channel::connect(&machine.socket(), None, DEADLINE).await?;
    tokio::time::sleep(Duration::from_millis(700)).await;
    let left = run(&channel, "pgrep -x cat || true").await?;
    assert_eq!(left, "", "programs of killed hosts still run");
    assert_eq!(channel.stats().await?.execs, 0);
    Ok(channel)
}

async fn warm(machine: &Machine, channel: &Channel) -> Outcome {
    let mut qmp = machine.qmp().await?;
    let (mut clocks, mut programs) = (Vec::new(), Vec::new());
    for round in 0..20 {
        qmp.ask("stop", serde_json::json!({})).await?;
        tokio::time::sleep(Duration::from_millis(if round == 0 { 5000 } else { 100 })).await;
        let start = Instant::now();
        qmp.ask("cont", serde_json::json!({})).await?;
        channel.adopt(&clock()).await?;
        clocks.push(ms(start));
        assert_eq!(run(channel, "echo hi").await?, "hi");
        programs.push(ms(start));
        let skew = run(channel, "date +%s%N").await?.parse::<u64>()?.abs_diff(now_ns());
        assert!(skew < 200_000_000, "clock off by {skew} ns");
    }
    percentiles("cont to clock set", clocks);
    percentiles("cont to clock set and a program's whole run", programs);
    Ok(())
}

async fn sleep(files: &Files, machine: Machine, channel: Channel) -> Outcome<(Machine, Channel)> {
    run(&channel, "nohup sh -c 'i=0; while :; do i=$((i+1)); echo $i > /run/count; sleep 0.1; done' >/dev/null 2>&1 &").await?;
    let dir = machine.dir.clone();
    let (mut machine, mut channel) = (machine, channel);
    let (mut times, mut answered, mut adopted) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..8 {
        let count: u64 =
            run(&channel, "cat /run/count").await.unwrap_or_default().parse().unwrap_or(0);
        // Every other time, the host is connected and sending when the snapshot is made.
        let talking = if round % 2 == 0 {
            Some(channel.exec(sh("exec cat /dev/zero")).await?)
        } else {
            channel.close().await;
            None
        };
        let mut qmp = machine.qmp().await?;
        qmp.ask("stop", serde_json::json!({})).await?;
        qmp.ignore_shared().await?;
        let state = dir.join("state").display().to_string();
        let uri = serde_json::json!({ "uri": format!("exec:cat > {state}") });
        qmp.ask("migrate", uri).await?;
        qmp.until("query-migrate", "completed").await?;
        qmp.ask("quit", serde_json::json!({})).await?;
        machine.process.wait()?;
        drop(talking);
        tokio::time::sleep(Duration::from_millis(300)).await;
        machine = Machine::boot(files, &dir, true)?;
        let mut qmp = machine.qmp().await?;
        qmp.ignore_shared().await?;
        let uri = serde_json::json!({ "uri": format!("exec:cat {state}") });
        qmp.ask("migrate-incoming", uri).await?;
        qmp.until("query-status", "paused").await?;
        qmp.ask("cont", serde_json::json!({})).await?;
        let resumed = Instant::now();
        channel = Channel::connect(&machine.socket(), None, DEADLINE).await?;
        answered.push(ms(resumed));
        channel.adopt(&clock()).await?;
        adopted.push(ms(resumed));
        times.push(ms(machine.started));
        let skew = run(&channel, "date +%s%N").await?.parse::<u64>()?.abs_diff(now_ns());
        assert!(skew < 300_000_000, "clock off by {skew} ns");
        tokio::time::sleep(Duration::from_millis(300)).await;
        let later: u64 = run(&channel, "cat /run/count").await?.parse()?;
        assert!(later > count, "the counter stands still: {count} {later}");
    }
    percentiles("sleeping: cont to WELCOME", answered);
    percentiles("sleeping: cont to clock set", adopted);
    percentiles("sleeping: spawn to clock set", times);
    Ok((machine, channel))
}

async fn shutdown(mut machine: Machine, channel: &Channel) -> Outcome {
    run(channel, "echo kept > /data/kept").await?;
    let start = Instant::now();
    channel.shutdown().await?;
    while machine.process.try_wait()?.is_none() {
        assert!(start.elapsed() < Duration::from_secs(10), "the machine does not end");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    println!("shutdown: {:.0} ms", ms(start));
    for disk in ["scratch.img", "data.img"] {
        let state = Command::new("dumpe2fs").arg("-h").arg(machine.dir.join(disk)).output()?;
        let state = String::from_utf8_lossy(&state.stdout).into_owned();
        println!("{disk} needs recovery: {}", state.contains("needs_recovery"));
    }
    println!("console:\n{}", std::fs::read_to_string(machine.dir.join("console.log"))?);
    Ok(())
}
