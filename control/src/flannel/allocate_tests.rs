use super::*;
use proptest::prelude::*;
use std::net::Ipv4Addr;

fn conf(text: &str) -> NetConf {
    NetConf::parse(text).unwrap()
}

fn v4(net: &str) -> Subnets {
    Subnets { v4: Some(net.parse().unwrap()), v6: None }
}

fn attrs(public_ip: &str) -> LeaseAttrs {
    LeaseAttrs { public_ip: Some(public_ip.parse().unwrap()), ..LeaseAttrs::default() }
}

fn held(net: &str, public_ip: &str) -> Held {
    Held { subnets: v4(net), attrs: Some(attrs(public_ip)) }
}

fn first(_: usize) -> usize {
    0
}

#[test]
fn the_lease_with_our_public_ip_is_gone_on_with_if_it_fits() {
    let conf = conf(r#"{"Network": "10.3.0.0/16", "SubnetMin": "10.3.5.0"}"#);
    let own = attrs("192.0.2.1");
    let none = Subnets::default();
    let all = [held("10.3.7.0/24", "192.0.2.2"), held("10.3.4.0/24", "192.0.2.1"), held("10.3.8.0/25", "192.0.2.1")];
    assert_eq!(reusable(&conf, &own, &none, &all), None);
    let all = [held("10.3.7.0/24", "192.0.2.1"), held("10.3.9.0/24", "192.0.2.1")];
    assert_eq!(reusable(&conf, &own, &none, &all), Some(0));
    assert_eq!(reusable(&conf, &own, &v4("10.3.9.0/24"), &all), Some(1));
    assert_eq!(reusable(&conf, &LeaseAttrs::default(), &none, &all), None);
}

#[test]
fn a_node_without_ipv4_underlay_is_known_by_its_ipv6_address() {
    let own = LeaseAttrs { public_ipv6: Some("fd00::1".parse().unwrap()), ..LeaseAttrs::default() };
    let both = |public_ip| LeaseAttrs { public_ipv6: own.public_ipv6, ..attrs(public_ip) };
    let with = |attrs| Held { subnets: v4("10.3.7.0/24"), attrs };
    assert!(with(Some(own.clone())).is_of(&own));
    // It had an IPv4 address when it wrote the record, or has one by now; another node cannot have its IPv6 address.
    assert!(with(Some(both("192.0.2.1"))).is_of(&own));
    assert!(with(Some(own.clone())).is_of(&both("192.0.2.1")));
    assert!(!with(Some(attrs("192.0.2.1"))).is_of(&own));
    assert!(!with(Some(both("192.0.2.1"))).is_of(&both("192.0.2.2")));
    assert!(!with(Some(LeaseAttrs::default())).is_of(&LeaseAttrs::default()));
    assert!(!with(None).is_of(&own));
}

#[test]
fn the_previous_subnet_is_taken_again_unless_somebody_holds_it_or_it_does_not_fit() {
    let conf = conf(r#"{"Network": "10.3.0.0/16"}"#);
    let previous = v4("10.3.77.0/24");
    let with = |held: &[Held]| allocate(&conf, &previous, held, &mut first).unwrap();
    assert_eq!(with(&[held("10.3.1.0/24", "192.0.2.2")]), previous);
    assert_eq!(with(&[held("10.3.77.0/24", "192.0.2.2")]), v4("10.3.1.0/24"));
    assert_eq!(with(&[held("10.3.64.0/18", "192.0.2.2")]), v4("10.3.1.0/24"));
    for other in ["10.3.77.0/25", "10.4.1.0/24", "10.3.0.0/24"] {
        assert_eq!(allocate(&conf, &v4(other), &[], &mut first), Some(v4("10.3.1.0/24")), "{other}");
    }
}

#[test]
fn a_record_that_claims_the_whole_network_stands_in_nobodys_way() {
    let conf = conf(r#"{"Network": "10.3.0.0/16"}"#);
    for whole in ["0.0.0.0/0", "10.0.0.0/8", "10.3.0.0/16"] {
        let all = [held(whole, "192.0.2.2"), held("10.3.1.0/24", "192.0.2.3")];
        assert_eq!(allocate(&conf, &Subnets::default(), &all, &mut first), Some(v4("10.3.2.0/24")), "{whole}");
        assert_eq!(allocate(&conf, &v4("10.3.7.0/24"), &all, &mut first), Some(v4("10.3.7.0/24")), "{whole}");
    }
    assert_eq!(
        allocate(&conf, &Subnets::default(), &[held("10.3.0.0/17", "192.0.2.2")], &mut first),
        Some(v4("10.3.128.0/24"))
    );
}

#[test]
fn the_choice_is_among_the_first_hundred() {
    let conf = conf(r#"{"Network": "10.0.0.0/8", "SubnetLen": 30}"#);
    let mut count = 0;
    let mut last = |n: usize| {
        count = n;
        n - 1
    };
    assert_eq!(allocate(&conf, &Subnets::default(), &[], &mut last), Some(v4("10.0.1.144/30")));
    assert_eq!(count, 100);
}

#[test]
fn the_last_subnet_of_all_addresses_can_be_taken() {
    let conf = conf(
        r#"{"Network": "255.255.255.0/24", "SubnetLen": 30, "SubnetMin": "255.255.255.252", "EnableIPv6": true,
            "IPv6Network": "ffff:ffff:ffff:ffff::/64", "IPv6SubnetLen": 126,
            "IPv6SubnetMin": "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffc"}"#,
    );
    let only = allocate(&conf, &Subnets::default(), &[], &mut first).unwrap();
    assert_eq!(only.v4, v4("255.255.255.252/30").v4);
    let all = [Held { subnets: only, attrs: None }];
    assert_eq!(allocate(&conf, &Subnets::default(), &all, &mut first), None);
}

#[test]
fn a_million_leases_are_walked() {
    let conf = conf(r#"{"Network": "10.0.0.0/8", "SubnetLen": 28}"#);
    let begin = u32::from(Ipv4Addr::new(10, 0, 0, 0));
    let net = |index: u32| Ipv4Net::new((begin + (index << 4)).into(), 28).unwrap();
    let all: Vec<Held> =
        (0..1_000_000).map(|i| Held { subnets: Subnets { v4: Some(net(i)), v6: None }, attrs: None }).collect();
    // Looking at each for each would not end.
    let free = allocate(&conf, &Subnets::default(), &all, &mut first).unwrap();
    assert_eq!(free.v4, Some(net(1_000_000)));
}

proptest! {
    #[test]
    fn what_is_allocated_is_free_and_fits_and_is_found_if_there_is_any(
        network_len in 16u8..=24, extra in 2u8..=5, choice in any::<prop::sample::Index>(),
        taken in prop::collection::vec((any::<u16>(), 14u8..=31), 0..40),
    ) {
        let len = network_len + extra;
        let conf = conf(&format!(r#"{{"Network": "10.3.0.0/{network_len}", "SubnetLen": {len}}}"#));
        let all: Vec<Held> = taken
            .into_iter()
            .map(|(low, len)| Ipv4Net::new((u32::from(Ipv4Addr::new(10, 3, 0, 0)) + u32::from(low)).into(), len).unwrap())
            .map(|net| Held { subnets: Subnets { v4: Some(net.trunc()), v6: None }, attrs: None })
            .collect();
        let pool = conf.v4.unwrap();
        let free: Vec<Subnets> = pool
            .network
            .subnets(len)
            .unwrap()
            .map(|net| Subnets { v4: Some(net), v6: None })
            .filter(|subnets| {
                let blocks = |held: &Held| overlaps(&held.subnets, subnets) && !held.subnets.v4.unwrap().contains(&pool.network);
                fits(&conf, subnets) && !all.iter().any(blocks)
            })
            .take(100)
            .collect();
        let chosen = allocate(&conf, &Subnets::default(), &all, &mut |count| {
            assert_eq!(count, free.len());
            choice.index(count)
        });
        prop_assert_eq!(chosen, (!free.is_empty()).then(|| free[choice.index(free.len())]));
    }

    #[test]
    fn both_families_are_chosen_independently(v6_choice in 0usize..100) {
        let conf = conf(r#"{"Network": "10.3.0.0/16", "EnableIPv6": true, "IPv6Network": "fc00::/48"}"#);
        let mut calls = 0;
        let chosen = allocate(&conf, &Subnets::default(), &[held("10.3.1.0/24", "192.0.2.2")], &mut |_| {
            calls += 1;
            if calls == 1 { 0 } else { v6_choice }
        }).unwrap();
        prop_assert_eq!(chosen.v4, v4("10.3.2.0/24").v4);
        prop_assert_eq!(chosen.v6, Some(format!("fc00:0:0:{:x}::/64", v6_choice + 1).parse().unwrap()));
        prop_assert!(fits(&conf, &chosen));
    }
}
