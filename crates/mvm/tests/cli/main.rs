//! The command line itself. No test here starts an agent: each works on a state directory that does
//! not exist and must not come to exist, or that cannot be made at all. So a correct command ends
//! with `agent_not_started`.

mod shown;

use serde_json::Value;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// A working directory, which is removed when the test ends.
struct TestDir {
    dir: TempDir,
}

impl TestDir {
    fn new() -> TestDir {
        let dir = tempfile::Builder::new().prefix("mvm-cli-").tempdir().expect("directory");
        std::fs::write(dir.path().join("file"), "").expect("file");
        std::fs::create_dir(dir.path().join("ci-flake")).expect("directory");
        std::fs::write(dir.path().join("ci-flake/flake.nix"), "{}").expect("file");
        TestDir { dir }
    }

    /// Returns the path of a state directory that does not exist.
    fn absent(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// Returns an `mvm` command whose agent cannot be started.
    fn mvm(&self, words: &[&str]) -> Command {
        // A file has no directories below it, not even for root.
        self.mvm_at(&self.dir.path().join("file/root"), words)
    }

    fn mvm_at(&self, root: &Path, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mvm"));
        command.current_dir(self.dir.path()).args(words).env("MVM_ROOT", root);
        // The tester's own identity and authority are neither used nor made.
        let nowhere = self.dir.path().join("file/none");
        command.env("MVM_IDENTITY", &nowhere).env("MVM_CA", &nowhere);
        for name in [
            "MVM_NETNS",
            "MVM_LOG",
            "NO_COLOR",
            "CLICOLOR",
            "CLICOLOR_FORCE",
            "COLUMNS",
            "MVM_COORDINATOR",
        ] {
            command.env_remove(name);
        }
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, words: &[&str]) -> Ran {
        Ran::of(&mut self.mvm(words))
    }

    fn run_absent(&self, words: &[&str]) -> Ran {
        Ran::of(&mut self.mvm_at(&self.absent(), words))
    }
}

/// The result of a command.
#[derive(Debug)]
struct Ran {
    status: i32,
    out: String,
    err: String,
}

impl Ran {
    fn of(command: &mut Command) -> Ran {
        let Output { status, stdout, stderr } = command.output().expect("mvm");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Ran { status: status.code().expect("no signal"), out: text(stdout), err: text(stderr) }
    }

    /// Returns the one problem document on standard error.
    fn problem(&self) -> Value {
        assert_eq!(self.out, "", "{self:?}");
        let value: Value =
            serde_json::from_str(&self.err).unwrap_or_else(|e| panic!("{e}: {self:?}"));
        for field in ["code", "detail"] {
            assert!(value[field].as_str().is_some_and(|text| !text.is_empty()), "{value}");
        }
        assert!(value["status"].is_u64(), "{value}");
        value
    }
}

/// Returns every subcommand that the help lists, as words, and the hidden ones.
fn subcommands(test_dir: &TestDir) -> Vec<Vec<String>> {
    let hidden = |noun: &str| vec![noun.to_owned(), "proxy".to_owned()];
    let mut found = vec![vec![], hidden("instance"), hidden("coordinator")];
    let mut next = 0;
    while next < found.len() {
        let path = found[next].clone();
        next += 1;
        let help = help(test_dir, &path, "--help");
        let listed = help.split("\nCommands:\n").nth(1).unwrap_or_default();
        for line in listed.lines().take_while(|line| line.starts_with("  ")) {
            // More deeply indented lines continue a description.
            let name = line[2..].split(' ').next().expect("a word");
            if !name.is_empty() && name != "help" {
                found.push(path.iter().cloned().chain([name.to_owned()]).collect());
            }
        }
    }
    assert!(found.len() > 40, "the walk found {}: {found:?}", found.len());
    found
}

fn help(test_dir: &TestDir, path: &[String], flag: &str) -> String {
    let words: Vec<&str> = path.iter().map(String::as_str).chain([flag]).collect();
    let ran = test_dir.run(&words);
    assert_eq!((ran.status, ran.err.as_str()), (0, ""), "{words:?}");
    ran.out
}

fn examples(help: &str) -> Vec<&str> {
    let text = help.split("\nExamples:\n").nth(1).unwrap_or_default();
    text.lines().take_while(|line| !line.is_empty()).collect()
}

/// Splits an example into words as a shell would, without redirections and pipes.
fn words(line: &str) -> Vec<String> {
    let line = line.split(['>', '<', '|']).next().expect("a part");
    line.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn every_subcommand_has_help_with_examples_on_lines_that_fit() {
    let test_dir = TestDir::new();
    for path in subcommands(&test_dir) {
        let long = help(&test_dir, &path, "--help");
        let short = help(&test_dir, &path, "-h");
        for line in long.lines().chain(short.lines()) {
            // clap does not break the line that names required arguments.
            let most = if line.starts_with("Usage: ") { 125 } else { 100 };
            assert!(line.chars().count() <= most, "{path:?}: {line}");
        }
        let examples = examples(&long);
        assert!(!examples.is_empty(), "{path:?} has no examples");
        for example in &examples {
            let whole = example.starts_with("  mvm ") || example.starts_with("  ssh ");
            assert!(whole, "{path:?}: this is no command, or was broken: {example}");
        }
        let own = format!("  mvm {}", path.join(" "));
        let proxy = path.last().is_some_and(|name| name == "proxy");
        assert!(proxy || examples.iter().any(|e| e.contains(own.trim()) || e.contains("--root")));
        assert!(short.contains("Usage: mvm"), "{path:?}");
    }
}

#[test]
fn every_example_in_help_is_taken_as_it_stands() {
    let test_dir = TestDir::new();
    std::fs::create_dir(test_dir.dir.path().join("src")).expect("directory");
    for path in subcommands(&test_dir) {
        for example in examples(&help(&test_dir, &path, "--help")) {
            let mut words = words(example);
            if words[0] != "mvm" || words.iter().any(|word| word == "/usr/local/share/man/man1") {
                continue;
            }
            words.remove(0);
            if words[0] == "--root" {
                words.drain(..2);
            }
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let ran = test_dir.run(&words);
            assert!(matches!(ran.status, 0 | 1 | 125), "{example}: {ran:?}");
        }
    }
    assert!(!test_dir.absent().exists());
}

/// The commands of the specification example, as they stand there; `<id>` stands for an instance's
/// id.
const SPECIFICATION: &str = r"
mvm tenant create ci \
  --net-id 20 \
  --subnet 10.240.20.0/24 \
  --max-vcpus 64 \
  --max-mem 131072 \
  --max-running 16 \
  --max-warm 4
mvm pool create ci/runners \
  --flake ./ci-flake \
  --profile ci-runner \
  --cpus 4 \
  --mem 4096 \
  --data-disk 2048
mvm pool build ci/runners
mvm pool scale ci/runners --running 0 --warm 4 --sleeping 8
mvm instance wake ci/runners/<id>
mvm instance ssh ci/runners/<id>
mvm instance sleep ci/runners/<id>
mvm instance destroy ci/runners/<id>
mvm instance create ci/runners
";

#[test]
fn the_specifications_commands_are_taken_as_written() {
    let test_dir = TestDir::new();
    let lines = SPECIFICATION.replace("\\\n", " ").replace("<id>", "i-0123abcd");
    let lines: Vec<&str> = lines.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(lines.len(), 9);
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().skip(1).collect();
        let ran = test_dir.run(&words);
        // The command is parsed, and fails only because there is no agent.
        assert_eq!(ran.status, 1, "{line}: {ran:?}");
        assert!(ran.err.starts_with("error[agent_not_started]: "), "{line}: {ran:?}");
    }
}

#[test]
fn the_specifications_remote_command_is_taken_as_written() {
    let test_dir = TestDir::new();
    let line =
        "mvm coordinator wake --node 10.0.1.5:4433 --tenant ci --pool runners --instance <id>";
    let line = line.replace("<id>", "i-0123abcd");
    let ran = test_dir.run(&line.split_whitespace().skip(1).collect::<Vec<_>>());
    // The command is parsed, and fails only because there is no identity.
    assert_eq!(ran.status, 1, "{ran:?}");
    assert!(ran.err.starts_with("error[identity_missing]: "), "{ran:?}");
    assert!(ran.err.contains("mvm ca issue --out DIR"), "{ran:?}");
}

#[test]
fn completions_are_given_for_each_shell() {
    let test_dir = TestDir::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = test_dir.run(&["completions", shell]);
        assert_eq!((ran.status, ran.err.as_str()), (0, ""));
        for word in ["mvm", "tenant", "override-input", "sleeping"] {
            assert!(ran.out.contains(word), "{shell}: {word}");
        }
    }
    let script = test_dir.dir.path().join("mvm.bash");
    std::fs::write(&script, test_dir.run(&["completions", "bash"]).out).expect("file");
    let check = Command::new("bash").arg("-n").arg(&script).output().expect("bash");
    assert!(check.status.success() && check.stderr.is_empty(), "{check:?}");
    assert_eq!(test_dir.run(&["completions", "tcsh"]).status, 2);
}

#[test]
fn there_is_a_manual_page_for_each_subcommand() {
    let test_dir = TestDir::new();
    let dir = test_dir.dir.path().join("share/man/man1");
    let ran = test_dir.run(&["man", dir.to_str().expect("UTF-8")]);
    assert_eq!((ran.status, ran.out.as_str(), ran.err.as_str()), (0, "", ""));
    for path in subcommands(&test_dir) {
        if path.last().is_some_and(|name| name == "proxy") {
            continue;
        }
        let name = ["mvm".to_owned()].into_iter().chain(path).collect::<Vec<_>>().join("-");
        let page = std::fs::read_to_string(dir.join(format!("{name}.1"))).expect(&name);
        assert!(page.contains(".TH ") && page.contains("Examples:"), "{name}");
    }
    let page = test_dir.run(&["man"]);
    assert_eq!(page.status, 0);
    assert!(page.out.contains(".TH mvm 1") && page.out.contains(".SH SYNOPSIS"));
    let refused = test_dir.run(&["man", "file/man1"]);
    assert_eq!(refused.status, 1);
    assert!(refused.err.contains("error[local_file]") && refused.err.contains("file/man1"));
}

#[test]
fn output_into_a_closed_pipe_ends_with_141_and_without_a_word() {
    let test_dir = TestDir::new();
    for words in [&["completions", "bash"][..], &["man"], &["--help"], &["doctor"]] {
        let (reader, writer) = std::io::pipe().expect("pipe");
        drop(reader);
        let ran = Ran::of(test_dir.mvm(words).stdout(writer));
        assert_eq!((ran.status, ran.err.as_str()), (141, ""), "{words:?}");
    }
}

const BAD: [&str; 6] = ["Ci/runners", "ci", "ci/runners/..", "ci/", "/runners", "ci/run ners"];

#[test]
fn a_bad_reference_is_wrong_usage_and_starts_nothing() {
    let test_dir = TestDir::new();
    let mut cases: Vec<Vec<&str>> = Vec::new();
    for bad in BAD {
        for verb in ["info", "build", "scale", "revisions", "rollback", "destroy", "update"] {
            cases.push(vec!["pool", verb, bad]);
        }
        for verb in ["info", "start", "stop", "warm", "sleep", "wake", "ssh", "logs", "destroy"] {
            cases.push(vec!["instance", verb, bad]);
        }
        cases.push(vec!["pool", "create", bad, "--flake", "./ci-flake", "--profile", "p"]);
        cases.push(vec!["instance", "create", bad]);
        cases.push(vec!["instance", "exec", bad, "--", "true"]);
        cases.push(vec!["run", bad, "--", "true"]);
        cases.push(vec!["bench", "--pool", bad]);
    }
    cases.extend([
        vec!["instance", "list", "Ci"],
        vec!["instance", "list", "Ci/runners"],
        vec!["instance", "list", "ci/runners/i-0123abcd"],
        vec!["instance", "info", "ci/runners/i-0123ABCD"],
        vec!["instance", "info", "ci/runners/i-0123abcd/x"],
        vec!["instance", "cp", "Ci/runners/i-0123abcd:/x", "."],
        vec!["instance", "cp", "ci/runners/i-0123:/x", "."],
        vec!["pool", "list", "ci/runners"],
        vec!["tenant", "info", "Ci"],
        vec!["tenant", "create", "-ci", "--net-id", "1", "--subnet", "10.1.0.0/24"],
    ]);
    for words in cases {
        let ran = test_dir.run_absent(&words);
        assert_eq!(ran.status, 2, "{words:?}: {ran:?}");
        assert_eq!(ran.out, "", "{words:?}");
        assert!(ran.err.starts_with("error: "), "{words:?}: {ran:?}");
        assert!(!test_dir.absent().exists(), "{words:?} made the state directory");
    }
}

#[test]
fn wrong_usage_names_its_fault_and_what_would_be_right() {
    let test_dir = TestDir::new();
    let cases: [(&[&str], &[&str]); 14] = [
        (&["pool", "info", "Ci/runners"], &["\"Ci\"", "other than a-z", "hint: use 1 to 63"]),
        (&["pool", "info", "ci"], &["\"ci\" does not name a pool", "such as ci/runners"]),
        (
            &["instance", "info", "ci/runners/.."],
            &["\"..\" is not a valid instance id", "i-0123abcd"],
        ),
        (&["instance", "info", "ci/runners"], &["does not name an instance", "tenant/pool/id"]),
        (&["instance", "list", "a/b/c"], &["does not name a pool"]),
        (&["instance", "cp", "a", "b"], &["error[usage]", "tenant/pool/i-0123abcd:/path"]),
        (
            &["run", "ci/runners", "-e", "1X=a", "--", "a"],
            &["'1X=a'", "is not a valid variable name"],
        ),
        (&["run", "ci/runners", "-e", "=X", "--", "a"], &["\"\" is not a valid variable name"]),
        (&["pool", "build", "ci/runners", "--override-input", "x"], &["there is no '='"]),
        (&["run", "ci/runners"], &["required", "COMMAND"]),
        (&["tenant", "create", "ci", "--net-id", "20"], &["--subnet"]),
        (&["tenant", "create", "ci", "--net-id", "70000", "--subnet", "10.0.0.0/8"], &["70000"]),
        (&["pool", "bild", "ci/runners"], &["'bild'", "'build'"]),
        (&["pool", "list", "--output", "xml"], &["'xml'", "json"]),
    ];
    for (words, parts) in cases {
        let ran = test_dir.run_absent(words);
        assert_eq!((ran.status, ran.out.as_str()), (2, ""), "{words:?}: {ran:?}");
        for part in parts {
            assert!(ran.err.contains(part), "{words:?}: no {part:?} in {}", ran.err);
        }
        // A program gets one document, whatever is wrong.
        for format in [&["-o", "json"][..], &["-ojson"], &["--output=json"], &["--output", "json"]]
        {
            if words.contains(&"xml") {
                continue;
            }
            let ran = test_dir.run_absent(&[format, words].concat());
            assert_eq!((ran.status, &ran.problem()["code"]), (2, &Value::from("usage")));
        }
    }
    assert!(!test_dir.absent().exists());
    for nothing in [&[][..], &["pool"]] {
        let ran = test_dir.run_absent(nothing);
        assert_eq!(ran.status, 2);
        assert!(ran.err.contains("Usage: mvm"), "{ran:?}");
    }
}

#[test]
fn what_is_wrong_with_our_own_files_is_said_before_an_agent_is_asked() {
    let test_dir = TestDir::new();
    let cases: [(&[&str], i32, &str); 6] = [
        (&["pool", "create", "ci/x", "--flake", "./no", "--profile", "p"], 1, "flake_missing"),
        (&["pool", "update", "ci/x", "--flake", "./no"], 1, "flake_missing"),
        (&["pool", "build", "ci/x", "--override-input", "a=./no"], 1, "flake_missing"),
        (&["kernel", "import", "./no"], 1, "local_file"),
        (&["instance", "cp", "./no", "ci/x/i-0123abcd:/"], 1, "local_file"),
        (&["run", "ci/x", "--in", "./no", "--", "true"], 125, "local_file"),
    ];
    for (words, status, code) in cases {
        let ran = test_dir.run_absent(words);
        assert_eq!((ran.status, ran.out.as_str()), (status, ""), "{words:?}: {ran:?}");
        assert!(ran.err.starts_with(&format!("error[{code}]: ")), "{words:?}: {ran:?}");
        assert!(ran.err.contains("no"), "{ran:?}");
    }
    assert!(!test_dir.absent().exists());
}

#[test]
fn a_refusal_is_status_1_and_a_document_for_programs() {
    let test_dir = TestDir::new();
    let cases: [(&[&str], i32); 6] = [
        (&["pool", "list"], 1),
        (&["tenant", "destroy", "ci"], 1),
        (&["kernel", "fetch"], 1),
        (&["agent", "serve"], 1),
        (&["run", "ci/runners", "--", "true"], 125),
        (&["instance", "exec", "ci/runners/i-0123abcd", "--", "true"], 125),
    ];
    for (words, status) in cases {
        let ran = test_dir.run(words);
        assert_eq!((ran.status, ran.out.as_str()), (status, ""), "{words:?}: {ran:?}");
        assert!(ran.err.starts_with("error["), "{words:?}: {ran:?}");
        let json = test_dir.run(&[&["-o", "json"], words].concat());
        assert_eq!(json.status, status);
        assert_eq!(json.err.lines().count(), 1, "{json:?}");
        let problem = json.problem();
        let code = problem["code"].as_str().expect("code");
        assert!(ran.err.starts_with(&format!("error[{code}]: ")), "{ran:?}");
        let yaml = test_dir.run(&[&["-o", "yaml"], words].concat());
        assert!(yaml.err.contains(&format!("\ncode: {code}\n")), "{yaml:?}");
    }
    // The words after `--` belong to the program.
    let theirs = test_dir.run(&["run", "ci/runners", "--", "tool", "-o", "json"]);
    assert!(theirs.err.starts_with("error["), "{theirs:?}");
}

#[test]
fn the_agent_is_not_started_by_asking_for_it() {
    let test_dir = TestDir::new();
    let status = test_dir.run_absent(&["agent", "status"]);
    assert_eq!((status.status, status.out.as_str()), (1, ""));
    assert!(status.err.starts_with("error[agent_unreachable]: no agent serves "), "{status:?}");
    assert!(status.err.contains("\n  hint: ") && status.err.contains("mvm agent serve"));
    let json = test_dir.run_absent(&["agent", "status", "-o", "json"]);
    assert_eq!((json.status, &json.problem()["code"]), (1, &Value::from("agent_unreachable")));
    let stop = test_dir.run_absent(&["agent", "stop"]);
    assert_eq!((stop.status, stop.err.as_str()), (0, ""));
    assert!(stop.out.starts_with("no agent serves "), "{stop:?}");
    assert!(!test_dir.absent().exists());
    // The socket of a killed agent does not count as an agent.
    std::fs::create_dir(test_dir.absent()).expect("directory");
    drop(
        std::os::unix::net::UnixListener::bind(test_dir.absent().join("agent.sock"))
            .expect("socket"),
    );
    assert_eq!(test_dir.run_absent(&["agent", "status"]).status, 1);
    assert_eq!(std::fs::read_dir(test_dir.absent()).expect("list").count(), 1);
}

/// The programs that doctor looks for, each with its Debian package.
const PROGRAMS: [(&str, &str); 7] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("nft", "nftables"),
    ("nix", "nix-bin"),
    ("mkfs.erofs", "erofs-utils"),
    ("mke2fs", "e2fsprogs"),
    ("dpkg-deb", "dpkg"),
    ("ssh", "openssh-client"),
];

/// Returns doctor's checks with this PATH, and compares them with its exit status.
fn doctor(test_dir: &TestDir, path: &Path) -> Vec<Value> {
    let mut command = test_dir.mvm_at(&test_dir.absent(), &["doctor", "-o", "json"]);
    let ran = Ran::of(command.env("PATH", path));
    let checks: Value = serde_json::from_str(&ran.out).expect("JSON");
    let checks = checks.as_array().expect("a list").clone();
    let missing = checks.iter().any(|check| check["status"] == "missing");
    assert_eq!((ran.status, ran.err.as_str()), (i32::from(missing), ""));
    for check in &checks {
        let status = check["status"].as_str().expect("status");
        assert!(["ok", "missing", "note"].contains(&status), "{check}");
        assert!(check["name"].is_string() && check["detail"].is_string(), "{check}");
        let remedy = check["remedy"].as_str().unwrap_or_default();
        assert!(status != "missing" || !remedy.is_empty(), "{check}");
    }
    checks
}

fn status_of<'a>(checks: &'a [Value], program: &str) -> &'a str {
    let names = |check: &&Value| check["detail"].as_str().is_some_and(|d| d.contains(program));
    checks.iter().find(names).expect(program)["status"].as_str().expect("status")
}

#[test]
fn doctor_names_what_is_missing_and_how_to_get_it() {
    let test_dir = TestDir::new();
    let empty = test_dir.dir.path().join("empty");
    std::fs::create_dir(&empty).expect("directory");
    let checks = doctor(&test_dir, &empty);
    let people = Ran::of(test_dir.mvm_at(&test_dir.absent(), &["doctor"]).env("PATH", &empty));
    assert_eq!((people.status, people.err.as_str()), (1, ""));
    for (program, package) in PROGRAMS {
        assert_eq!(status_of(&checks, program), "missing");
        let line = people.out.lines().find(|line| line.contains(&format!("{program} is not in")));
        let line = line.unwrap_or_else(|| panic!("{program}: {}", people.out));
        assert!(line.ends_with(&format!("apt-get install {package}")), "{line}");
        assert!(line.contains("missing"), "{line}");
    }
    for name in ["root", "tap device", "build sandbox", "state directory", "disk space", "agent"] {
        assert!(checks.iter().any(|check| check["name"] == name), "{name}");
    }
    assert!(!test_dir.absent().exists());
}

#[test]
fn doctor_takes_for_a_program_only_what_can_be_executed() {
    let test_dir = TestDir::new();
    let dir = test_dir.dir.path().join("bin");
    std::fs::create_dir(&dir).expect("directory");
    for (program, _) in PROGRAMS {
        std::fs::write(dir.join(program), "").expect("file");
    }
    let mode = |bits| {
        for (program, _) in PROGRAMS {
            let mode = std::fs::Permissions::from_mode(bits);
            std::fs::set_permissions(dir.join(program), mode).expect("mode");
        }
    };
    mode(0o644);
    let checks = doctor(&test_dir, &dir);
    assert!(PROGRAMS.iter().all(|(program, _)| status_of(&checks, program) == "missing"));
    mode(0o755);
    let checks = doctor(&test_dir, &dir);
    assert!(PROGRAMS.iter().all(|(program, _)| status_of(&checks, program) == "ok"));
}

/// Returns what the command writes to a terminal, on standard output and standard error.
fn on_a_terminal(command: &mut Command) -> String {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("pty");
    grantpt(&ours).expect("pty");
    unlockpt(&ours).expect("pty");
    let name = ptsname(&ours, Vec::new()).expect("pty").into_string().expect("UTF-8");
    let theirs = || std::fs::File::options().read(true).write(true).open(&name).expect("pty");
    // Kept open until everything is read: when the last end is closed, the terminal is gone.
    let kept = theirs();
    let mut child = command.stdout(theirs()).stderr(theirs()).spawn().expect("mvm");
    child.wait().expect("wait");
    command.stdout(Stdio::null()).stderr(Stdio::null());
    drop(kept);
    let mut bytes = Vec::new();
    // The read ends with EIO when all other ends of the terminal are closed.
    let _ = std::fs::File::from(ours).read_to_end(&mut bytes);
    String::from_utf8(bytes).expect("UTF-8")
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    let test_dir = TestDir::new();
    let cases: [&[&str]; 4] =
        [&["pool", "list"], &["pool", "info", "Ci/x"], &["agent", "status"], &["-h"]];
    for words in cases {
        let ran = test_dir.run(words);
        assert!(!ran.err.contains('\x1b') && !ran.out.contains('\x1b'), "{ran:?}");
        let shown = on_a_terminal(test_dir.mvm(words).env("TERM", "xterm"));
        assert!(shown.contains('\x1b'), "in colour on a terminal: {words:?}: {shown:?}");
        let plain = on_a_terminal(test_dir.mvm(words).env("TERM", "xterm").env("NO_COLOR", "1"));
        assert!(!plain.is_empty() && !plain.contains('\x1b'), "{words:?}: {plain:?}");
    }
    let ran = test_dir.run(&["doctor"]);
    assert!(!ran.out.contains('\x1b'), "{ran:?}");
}

#[test]
fn help_and_version_are_asked_for_and_no_fault() {
    let test_dir = TestDir::new();
    for words in [&["--version"][..], &["-V"], &["help"], &["help", "pool", "scale"], &["-h"]] {
        let ran = test_dir.run_absent(words);
        assert_eq!((ran.status, ran.err.as_str()), (0, ""), "{words:?}");
        assert!(!ran.out.is_empty());
    }
    let version = test_dir.run_absent(&["--version"]).out;
    assert_eq!(version, format!("mvm {}\n", env!("CARGO_PKG_VERSION")));
}
