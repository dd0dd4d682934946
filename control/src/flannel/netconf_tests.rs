use super::*;

fn parse(text: &str) -> NetConf {
    NetConf::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn v4(text: &str) -> (String, u8, String, String) {
    let pool = parse(text).v4.unwrap();
    (pool.network.to_string(), pool.subnet_len, pool.subnet_min.addr().to_string(), pool.subnet_max.addr().to_string())
}

#[test]
fn defaults_are_those_of_stock_flannel() {
    let cases = [
        (r#"{"network": "10.3.0.0/16"}"#, ("10.3.0.0/16", 24, "10.3.1.0", "10.3.255.0")),
        (r#"{"Network": "10.3.4.5/16"}"#, ("10.3.0.0/16", 24, "10.3.1.0", "10.3.255.0")),
        (r#"{"Network": "10.3.0.0/22"}"#, ("10.3.0.0/22", 24, "10.3.1.0", "10.3.3.0")),
        (r#"{"Network": "10.3.0.0/23"}"#, ("10.3.0.0/23", 25, "10.3.0.128", "10.3.1.128")),
        (r#"{"Network": "10.3.0.0/28"}"#, ("10.3.0.0/28", 30, "10.3.0.4", "10.3.0.12")),
        (r#"{"Network": "0.0.0.0/0"}"#, ("0.0.0.0/0", 24, "0.0.1.0", "255.255.255.0")),
        (
            r#"{"Network": "10.3.0.0/16", "SubnetLen": 28, "SubnetMin": "10.3.5.0", "SubnetMax": "10.3.8.0"}"#,
            ("10.3.0.0/16", 28, "10.3.5.0", "10.3.8.0"),
        ),
    ];
    for (text, (network, len, min, max)) in cases {
        assert_eq!(v4(text), (network.into(), len, min.into(), max.into()), "{text}");
    }
    let conf = parse(r#"{"EnableIPv6": true, "Network": "10.3.0.0/16", "IPv6Network": "fc00::/48"}"#);
    let pool = conf.v6.unwrap();
    assert_eq!(
        (pool.subnet_len, pool.subnet_min.to_string(), pool.subnet_max.to_string()),
        (64, "fc00:0:0:1::/64".into(), "fc00:0:0:ffff::/64".into())
    );
    assert_eq!((conf.enable_nftables, conf.backend), (false, BackendConf::Udp { port: 8285, underlay: None }));
    assert_eq!(parse(r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fc00::/48"}"#).network(), None);
}

#[test]
fn backends_take_their_keys_and_defaults() {
    let vxlan = VxlanConf { vni: 1, port: None, mtu: None, gbp: false, learning: false, direct_routing: false };
    let cases = [
        (r#"{"Type": "UDP"}"#, BackendConf::Udp { port: 8285, underlay: None }),
        (r#"{"type": "udp", "PORT": 7, "port": 7890}"#, BackendConf::Udp { port: 7890, underlay: None }),
        (
            r#"{"Type": "udp", "underlay": "IPv6"}"#,
            BackendConf::Udp { port: 8285, underlay: Some(UnderlayFamily::Ipv6) },
        ),
        (
            r#"{"Type": "udp", "Underlay": "ipv4"}"#,
            BackendConf::Udp { port: 8285, underlay: Some(UnderlayFamily::Ipv4) },
        ),
        (r#"{"Type": "VxLan"}"#, BackendConf::Vxlan(vxlan.clone())),
        (r#"{"Type": "vxlan", "Port": 0, "MTU": 0, "Extra": {}}"#, BackendConf::Vxlan(vxlan)),
        (
            r#"{"Type":"vxlan","VNI":42,"Port":4789,"MTU":9000,"GBP":true,"Learning":true,"DirectRouting":true}"#,
            BackendConf::Vxlan(VxlanConf {
                vni: 42,
                port: Some(4789),
                mtu: Some(9000),
                gbp: true,
                learning: true,
                direct_routing: true,
            }),
        ),
        (r#"{"Type": "host-gw"}"#, BackendConf::HostGw),
        (
            r#"{"Type": "extension", "PreStartupCommand": "a", "SubnetAddCommand": "b c"}"#,
            BackendConf::Extension(ExtensionConf {
                pre_startup: "a".into(),
                subnet_add: "b c".into(),
                ..ExtensionConf::default()
            }),
        ),
    ];
    for (text, expected) in cases {
        let conf = parse(&format!(r#"{{"Network": "10.3.0.0/16", "Backend": {text}}}"#));
        assert_eq!(conf.backend, expected, "{text}");
    }
}

#[test]
fn what_is_wrong_is_named_with_key_value_and_expectation() {
    let cases = [
        ("", "it is no JSON object"),
        ("[]", "it is no JSON object"),
        ("{}", "Network is missing; expected a prefix such as \"10.5.0.0/16\""),
        (r#"{"Network": ""}"#, "Network is missing"),
        (r#"{"Network": null}"#, "Network is missing"),
        (r#"{"Network": 10}"#, "Network is 10; expected a string, in quotes"),
        (r#"{"Network": "10.3.0.0"}"#, "Network is \"10.3.0.0\"; expected a prefix"),
        (r#"{"Network": "fc00::/48"}"#, "of the other family"),
        (
            r#"{"Network": "10.3.0.0/29"}"#,
            "Network is 10.3.0.0/29, too small to be divided among nodes; its prefix length has to be at most 28",
        ),
        (
            r#"{"Network": "10.3.0.0/16", "SubnetLen": 31}"#,
            "SubnetLen is 31; SubnetLen of 10.3.0.0/16 has to be from 18 to 30",
        ),
        (
            r#"{"Network": "10.3.0.0/16", "SubnetLen": 17}"#,
            "SubnetLen is 17; SubnetLen of 10.3.0.0/16 has to be from 18 to 30",
        ),
        (
            r#"{"Network": "10.3.0.0/30", "SubnetLen": 30}"#,
            "SubnetLen is 30; Network 10.3.0.0/30 is too small to be divided",
        ),
        (
            r#"{"Network": "10.3.0.0/16", "SubnetLen": "24"}"#,
            "SubnetLen is \"24\"; expected a whole number, without quotes",
        ),
        (r#"{"Network": "10.3.0.0/16", "SubnetLen": 24.5}"#, "SubnetLen is 24.5; expected a whole number"),
        (r#"{"Network": "10.3.0.0/16", "SubnetLen": -1}"#, "SubnetLen is -1; expected a whole number"),
        (
            r#"{"Network": "10.3.0.0/16", "SubnetMin": "10.4.1.0"}"#,
            "SubnetMin is \"10.4.1.0\"; expected an address inside 10.3.0.0/16",
        ),
        (
            r#"{"Network": "10.3.0.0/16", "SubnetMax": "x"}"#,
            "SubnetMax is \"x\"; expected an address inside 10.3.0.0/16",
        ),
        (
            r#"{"Network": "10.3.0.0/16", "SubnetMin": "10.3.1.7"}"#,
            "SubnetMin is 10.3.1.7, which is not where a subnet of /24 begins; the nearest is 10.3.1.0",
        ),
        (
            r#"{"Network": "10.3.0.0/16", "SubnetMin": "10.3.9.0", "SubnetMax": "10.3.8.0"}"#,
            "SubnetMin 10.3.9.0 is above SubnetMax 10.3.8.0",
        ),
        (
            r#"{"Network": "10.3.0.0/16", "EnableIPv4": "true"}"#,
            "EnableIPv4 is \"true\"; expected true or false, without quotes",
        ),
        (r#"{"Network": "10.3.0.0/16", "EnableIPv4": false}"#, "both false"),
        (r#"{"Network": "10.3.0.0/16", "EnableIPv6": true}"#, "IPv6Network is missing"),
        (r#"{"Network": "10.3.0.0/16", "EnableIPv6": true, "IPv6Network": "fc00::/125"}"#, "at most 124"),
        (
            r#"{"Network": "10.3.0.0/16", "EnableIPv6": true, "IPv6Network": "fc00::/48", "IPv6SubnetLen": 127}"#,
            "from 50 to 126",
        ),
        (
            r#"{"Network": "10.3.0.0/16", "Backend": "udp"}"#,
            "Backend is \"udp\"; expected an object such as {\"Type\": \"udp\"}",
        ),
        (r#"{"Network": "10.3.0.0/16", "Backend": null}"#, "Backend is null"),
        (r#"{"Network": "10.3.0.0/16", "Backend": {}}"#, "Backend.Type is missing"),
        (r#"{"Network": "10.3.0.0/16", "Backend": {"Type": 1}}"#, "Backend.Type is 1; expected a string"),
        (
            r#"{"Network": "10.3.0.0/16", "Backend": {"Type": "udp", "Port": 65536}}"#,
            "Backend.Port is 65536; expected a whole number from 0 to 65535",
        ),
        (r#"{"Network": "10.3.0.0/16", "Backend": {"Type": "udp", "Port": 0}}"#, "Backend.Port is 0"),
        (
            r#"{"Network": "10.3.0.0/16", "Backend": {"Type": "udp", "Underlay": "both"}}"#,
            "Backend.Underlay is \"both\"; expected \"ipv4\" or \"ipv6\"",
        ),
        (
            r#"{"Network": "10.3.0.0/16", "Backend": {"Type": "vxlan", "VNI": 16777216}}"#,
            "Backend.VNI is 16777216; expected a whole number from 0 to 16777215",
        ),
        (
            r#"{"Network": "10.3.0.0/16", "Backend": {"Type": "vxlan", "GBP": 1}}"#,
            "Backend.GBP is 1; expected true or false",
        ),
    ];
    for (text, expected) in cases {
        let error = NetConf::parse(text).expect_err(text).to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn a_type_that_weft_does_not_have_is_told_apart_from_a_broken_config() {
    let conf = NetConf::parse(r#"{"Network": "10.3.0.0/16", "Backend": {"Type": "WireGuard"}}"#).unwrap();
    assert_eq!(conf.backend, BackendConf::Other("wireguard".into()));
}
