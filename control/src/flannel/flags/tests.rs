use super::*;
use std::collections::HashMap;

fn read_with(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Command, Refused> {
    let arguments: Vec<String> = arguments.iter().map(|argument| argument.to_string()).collect();
    let environment: HashMap<&str, &str> = environment.iter().copied().collect();
    read(&arguments, |name| environment.get(name).map(|value| value.to_string()))
}

fn flags(arguments: &[&str]) -> Flags {
    match read_with(arguments, &[]).unwrap() {
        Command::Run(flags) => *flags,
        other => panic!("{other:?}"),
    }
}

fn refusal(arguments: &[&str]) -> String {
    read_with(arguments, &[]).unwrap_err().to_string()
}

#[test]
fn without_flags_everything_is_as_flannel_has_it() {
    let flags = flags(&[]);
    assert_eq!(flags.etcd.endpoints, ["http://127.0.0.1:4001", "http://127.0.0.1:2379"]);
    assert_eq!(flags.etcd.prefix, "/coreos.com/network");
    assert_eq!(flags.subnet_file, PathBuf::from("/run/flannel/subnet.env"));
    assert_eq!((flags.renew_margin, flags.resync), (Duration::from_secs(3600), Duration::from_secs(5)));
    assert_eq!((flags.ip_masq, flags.random_fully, flags.forward_rules, flags.blackhole), (false, true, true, false));
    assert_eq!((flags.healthz, flags.public_ip, flags.workers), (None, None, None));
    assert_eq!((flags.peer_check.as_str(), flags.engine.as_str()), ("strict", "auto"));
}

/// A value that differs from the default, for every flag.
const EXAMPLES: &[(&str, &str)] = &[
    ("etcd-endpoints", "https://192.0.2.9:2379"),
    ("etcd-prefix", "/vxlan/network"),
    ("etcd-keyfile", "/tls/key.pem"),
    ("etcd-certfile", "/tls/cert.pem"),
    ("etcd-cafile", "/tls/ca.pem"),
    ("etcd-username", "flannel"),
    ("etcd-password", "hunter2"),
    ("iface", "eth1"),
    ("iface-regex", "192\\.0\\.2\\..*"),
    ("iface-can-reach", "192.0.2.9"),
    ("public-ip", "203.0.113.7"),
    ("public-ipv6", "2001:db8::7"),
    ("subnet-file", "/tmp/subnet.env"),
    ("subnet-lease-renew-margin", "120"),
    ("ip-masq", "true"),
    ("ip-masq-fully-random-disable", "true"),
    ("iptables-resync", "30"),
    ("iptables-forward-rules", "false"),
    ("ip-blackhole-route", "true"),
    ("healthz-ip", "127.0.0.1"),
    ("healthz-port", "8081"),
    ("v", "10"),
    ("vmodule", "main=3"),
    ("log_backtrace_at", "main.go:1"),
    ("network-grace", "0x10"),
    ("run-dir", "/run/other"),
    ("peer-check", "off"),
    ("engine", "epoll"),
    ("workers", "3"),
    ("source-ports", "spread"),
    ("backpressure", "false"),
    ("sparse-lane", "false"),
    ("kube-subnet-mgr", "true"),
    ("kube-api-url", "https://192.0.2.9"),
    ("kubeconfig-file", "/etc/kubeconfig"),
    ("kube-annotation-prefix", "example.org"),
    ("net-config-path", "/etc/net-conf.json"),
    ("set-node-network-unavailable", "false"),
    ("version", "true"),
];

#[test]
fn every_flag_may_be_written_in_every_way_and_come_from_the_environment() {
    for flag in FLAGS {
        let (_, value) = EXAMPLES.iter().find(|(name, _)| *name == flag.name).expect(flag.name);
        let mut ways = vec![vec![format!("--{}={value}", flag.name)], vec![format!("-{}={value}", flag.name)]];
        if flag.kind == Kind::Bool {
            ways.push(vec![format!("--{}={}", flag.name, if *value == "true" { "1" } else { "F" })]);
        } else {
            ways.push(vec![format!("--{}", flag.name), value.to_string()]);
            ways.push(vec![format!("-{}", flag.name), value.to_string()]);
        }
        let read_line = |way: &Vec<String>| read_with(&way.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
        // --healthz-ip has no effect on its own.
        let ways: Vec<Vec<String>> = match flag.name {
            "healthz-ip" => ways.into_iter().map(|way| [way, vec!["--healthz-port=80".into()]].concat()).collect(),
            _ => ways,
        };
        let first = read_line(&ways[0]);
        for way in &ways[1..] {
            assert_eq!(read_line(way), first, "{way:?}");
        }
        let rest: &[&str] = if flag.name == "healthz-ip" { &["--healthz-port=80"] } else { &[] };
        assert_eq!(read_with(rest, &[(&flag.variable(), value)]), first, "{}", flag.variable());
        match (flag.scope, flag.name) {
            (Scope::Kubernetes, _) => assert!(matches!(first, Err(Refused::Unsupported(_))), "{}", flag.name),
            (Scope::Accepted, _) => assert_eq!(first, read_with(&[], &[]), "{}", flag.name),
            (_, "version") => assert_eq!(first, Ok(Command::Version)),
            _ => assert!(first.is_ok() && first != read_with(rest, &[]), "{}: {first:?}", flag.name),
        }
    }
}

#[test]
fn the_command_line_goes_before_the_environment() {
    let command = read_with(&["--etcd-prefix", "/line"], &[("FLANNELD_ETCD_PREFIX", "/variable")]).unwrap();
    assert!(matches!(command, Command::Run(flags) if flags.etcd.prefix == "/line"));
    let command = read_with(&["--iface", "a", "-iface=b"], &[("FLANNELD_IFACE", "c")]).unwrap();
    assert!(matches!(command, Command::Run(flags) if flags.iface == ["a", "b"]));
    let command = read_with(&[], &[("FLANNELD_IFACE", "c"), ("FLANNELD_SUBNET_FILE", "")]).unwrap();
    assert!(matches!(command, Command::Run(flags) if flags.iface == ["c"]));
    let shared = ("WEFT_RUN_DIR", "/shared");
    for (arguments, variables, expected) in [
        (&[][..], &[shared][..], "/shared"),
        (&[], &[shared, ("FLANNELD_RUN_DIR", "/own")], "/own"),
        (&["--run-dir=/line"], &[shared], "/line"),
    ] {
        let command = read_with(arguments, variables).unwrap();
        assert!(matches!(command, Command::Run(flags) if flags.run_dir.to_str() == Some(expected)), "{expected}");
    }
}

#[test]
fn the_last_of_several_counts_and_a_boolean_takes_no_word_after_it() {
    assert_eq!(flags(&["--etcd-prefix", "/a", "--etcd-prefix", "/b"]).etcd.prefix, "/b");
    assert!(refusal(&["--ip-masq", "false"]).contains("\"false\" is not a flag"));
    assert!(flags(&["--ip-masq", "--"]).ip_masq);
}

#[test]
fn a_wrong_command_line_is_refused_with_what_was_expected() {
    for (arguments, expected) in [
        (&["--subnet-lease-renew-margin=0"][..], "a number from 1 to 1439 minutes"),
        (&["--subnet-lease-renew-margin=1440"], "a number from 1 to 1439 minutes"),
        (&["--subnet-lease-renew-margin=-5"], "a number from 1 to 1439 minutes"),
        (&["--healthz-port=65536"], "0 to 65535"),
        (&["--iptables-resync=0"], "1 to 86400 seconds"),
        (&["--network-grace=-1"], "0 to 86400 seconds"),
        (&["--ip-masq=yes"], "true or false"),
        (&["--public-ip=2001:db8::1"], "an IPv4 address"),
        (&["--public-ipv6=192.0.2.1"], "an IPv6 address"),
        (&["--iface-can-reach=example.org"], "an IP address"),
        (&["--peer-check=loose"], "strict, log, off"),
        (&["--engine=dpdk"], "auto, uring, epoll"),
        (&["--etcd-endpoints=,"], "no endpoint"),
        (&["--etcd-endpoint=x"], "did you mean --etcd-endpoints?"),
        (&["--etcd-prefix"], "needs a value"),
        (&["-"], "is not a flag"),
        (&["--", "more"], "\"more\" is not a flag"),
        (&["--v=much"], "expected a number"),
        (&["--kube-annotation-prefix=org"], "\"org\" is no domain name of several parts"),
        (&["--kube-annotation-prefix=org.com/a/b"], "more than one slash"),
        (&["--kube-annotation-prefix="], "is no domain name"),
        (&["--kube-subnet-mgr", "--kube-annotation-prefix=org.COM"], "--kube-annotation-prefix"),
    ] {
        assert!(refusal(arguments).contains(expected), "{arguments:?}: {}", refusal(arguments));
        assert!(matches!(read_with(arguments, &[]), Err(Refused::Usage(_))), "{arguments:?}");
    }
    for (margin, minutes) in [("1", 1), ("1439", 1439), ("0x10", 16), ("010", 8)] {
        let flags = flags(&[&format!("--subnet-lease-renew-margin={margin}")]);
        assert_eq!(flags.renew_margin, Duration::from_secs(minutes * 60));
    }
}

#[test]
fn kubernetes_is_refused_unless_it_is_not_asked_for() {
    assert!(refusal(&["--kube-subnet-mgr"]).contains("takes leases from etcd only"));
    assert!(read_with(&["--kube-subnet-mgr=false", "--set-node-network-unavailable=true"], &[]).is_ok());
    // A prefix that stock flannel takes is no mistake, but is of no use here; its default is.
    for prefix in ["org.com/9", "flannel.alpha.coreos.com/"] {
        let refused = read_with(&[&format!("--kube-annotation-prefix={prefix}")], &[]);
        assert!(matches!(refused, Err(Refused::Unsupported(_))), "{refused:?}");
    }
    assert!(read_with(&["--kube-annotation-prefix=flannel.alpha.coreos.com"], &[]).is_ok());
}

#[test]
fn help_and_version_are_asked_for_in_each_usual_way() {
    for help in ["-h", "--h", "-help", "--help"] {
        assert_eq!(read_with(&[help, "--nonsense"], &[]), Ok(Command::Help), "{help}");
    }
    assert_eq!(read_with(&["-version"], &[]), Ok(Command::Version));
    let usage = usage("flanneld");
    assert!(FLAGS.iter().all(|flag| usage.contains(&format!("--{}", flag.name))));
}

#[test]
fn the_document_has_every_flag_with_its_default() {
    let document = include_str!("../../../../docs/flannel.md");
    for Flag { name, default, scope, .. } in FLAGS {
        let row = document.lines().find(|line| line.starts_with(&format!("| `--{name}` |")));
        let is_there = match scope {
            Scope::Kubernetes => document.contains(&format!("`--{name}`")),
            _ => row.is_some_and(|row| default.is_empty() || row.contains(&format!("| `{default}` |"))),
        };
        assert!(is_there, "--{name}: {row:?}");
    }
}

#[test]
fn the_packaged_unit_and_manifest_give_flags_that_there_are() {
    let manifest = include_str!("../../../../packaging/weft-flanneld.yaml");
    let given: Vec<&str> = manifest.lines().filter_map(|line| line.trim().strip_prefix("- ")).collect();
    let arguments: Vec<&str> = given.into_iter().filter(|word| word.starts_with("--")).collect();
    assert!(arguments.len() >= 3, "{arguments:?}");
    let port = flags(&arguments).healthz.unwrap().port();
    let probed = format!("port: {port}");
    assert_eq!(
        manifest.lines().filter(|line| line.trim() == probed).count(),
        2,
        "a probe each on /healthz and /readyz"
    );
    let unit = include_str!("../../../../packaging/weft-flanneld.service");
    let command = unit.lines().find_map(|line| line.strip_prefix("ExecStart=@PREFIX@/bin/weft flanneld")).unwrap();
    flags(&command.split_whitespace().collect::<Vec<_>>());
    for line in unit.lines().filter_map(|line| line.strip_prefix("EnvironmentFile=-")) {
        assert!(include_str!("../../../../docs/flannel.md").contains(line), "{line}");
    }
}

#[test]
fn the_password_is_never_shown() {
    let flags = flags(&["--etcd-username=flannel", "--etcd-password=hunter2"]);
    assert!(!format!("{flags:?}").contains("hunter2"), "{flags:?}");
    assert_eq!(flags.etcd.password.reveal(), "hunter2");
}

#[test]
fn numbers_are_read_as_go_reads_them() {
    for (text, value) in
        [("0", Some(0)), ("7", Some(7)), ("+7", Some(7)), ("-3", Some(-3)), ("0b11", Some(3)), ("0X1_0", Some(16))]
    {
        assert_eq!(integer(text), value, "{text}");
    }
    for text in ["", "-", "1_0", "0x", "08", "seven", "1.5", "+-1"] {
        assert_eq!(integer(text), None, "{text}");
    }
}
