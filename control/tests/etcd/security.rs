//! TLS, passwords, permissions.

use crate::*;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use std::path::{Path, PathBuf};
use weft_control::source::etcd::EtcdError;
use weft_lab::EtcdTls;

/// An authority, and what it issued, in files.
struct Authority {
    directory: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "an authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Authority { directory: tempfile::tempdir().unwrap(), issuer };
        std::fs::write(authority.path("ca.pem"), authority.issuer.pem()).unwrap();
        authority
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `NAME.pem` and `NAME.key`, for 127.0.0.1. etcd's gateway speaks to etcd with the server's certificate, which is
    /// then that of a client too.
    fn issue(&self, name: &str) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let (cert_path, key_path) = (self.path(&format!("{name}.pem")), self.path(&format!("{name}.key")));
        std::fs::write(&cert_path, certificate.pem()).unwrap();
        std::fs::write(&key_path, key.serialize_pem()).unwrap();
        (cert_path, key_path)
    }
}

fn connect_error(options: &EtcdOptions) -> String {
    Registry::connect(options).unwrap_err().to_string()
}

#[test]
fn client_certificates_are_shown_and_servers_are_checked() {
    let authority = Authority::new();
    let (cert, key) = authority.issue("server");
    let client_ca = Some(authority.path("ca.pem"));
    let etcd = Etcd::start_tls(EtcdTls { client_ca, cert, key }).unwrap();
    let (cert, key) = authority.issue("client");
    let with = |ca: Option<&Path>, pair: Option<(&Path, &Path)>| EtcdOptions {
        ca_file: ca.map(Path::to_owned),
        cert_file: pair.map(|(cert, _)| cert.to_owned()),
        key_file: pair.map(|(_, key)| key.to_owned()),
        ..options(&etcd)
    };
    let ca = authority.path("ca.pem");
    let good = with(Some(&ca), Some((&cert, &key)));
    let (watch, _) = node(&etcd, &good);
    put_peer(&etcd, "10.5.1.0-24", "192.0.2.11");
    assert_added(&watch, "10.5.1.0/24", "192.0.2.11");

    let stranger = Authority::new();
    let (strange_cert, strange_key) = stranger.issue("client");
    let refused = [
        ("no certificate of ours", with(Some(&ca), None)),
        ("another authority's certificate", with(Some(&ca), Some((&strange_cert, &strange_key)))),
        ("a server of another authority", with(Some(&stranger.path("ca.pem")), Some((&cert, &key)))),
        ("a server that the system does not trust", with(None, Some((&cert, &key)))),
    ];
    for (case, options) in refused {
        let error = Registry::connect(&options).unwrap().fetch_config().unwrap_err();
        assert!(matches!(error, EtcdError::Unreachable(_)), "{case}: {error}");
        assert!(error.to_string().contains("127.0.0.1"), "{case}: {error}");
    }
}

#[test]
fn certificates_are_no_harm_at_an_endpoint_without_tls() {
    // As flannel's own functional tests start it.
    let etcd = Etcd::start().unwrap();
    let authority = Authority::new();
    let (cert, key) = authority.issue("client");
    let (ca_file, cert_file, key_file) = (Some(authority.path("ca.pem")), Some(cert), Some(key));
    assert!(etcd.url().starts_with("http://"));
    node(&etcd, &EtcdOptions { ca_file, cert_file, key_file, ..options(&etcd) });
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let etcd = Etcd::start().unwrap();
    let authority = Authority::new();
    let ((cert, key), (other, _)) = (authority.issue("a"), authority.issue("b"));
    let empty = authority.path("empty.pem");
    std::fs::write(&empty, "").unwrap();
    let base = options(&etcd);
    let with = |ca: Option<&PathBuf>, cert: Option<&PathBuf>, key: Option<&PathBuf>| EtcdOptions {
        ca_file: ca.cloned(),
        cert_file: cert.cloned(),
        key_file: key.cloned(),
        ..base.clone()
    };
    let absent = authority.path("absent.pem");
    let cases = [
        (with(Some(&absent), None, None), "--etcd-cafile"),
        (with(Some(&empty), None, None), "holds no certificate"),
        (with(None, Some(&cert), None), "go together; one is missing"),
        (with(None, Some(&cert), Some(&empty)), "holds no private key"),
        (with(None, Some(&other), Some(&key)), "do not go together"),
        (EtcdOptions { endpoints: vec![], ..base.clone() }, "--etcd-endpoints is empty"),
        (EtcdOptions { endpoints: vec!["127.0.0.1:2379".into()], ..base.clone() }, "expected a URL"),
        (EtcdOptions { endpoints: vec!["ftp://127.0.0.1".into()], ..base.clone() }, "expected a URL"),
        (EtcdOptions { endpoints: vec!["http://a:secret@127.0.0.1".into()], ..base.clone() }, "without user"),
        (EtcdOptions { username: Some("a".into()), ..base.clone() }, "--etcd-password go together"),
    ];
    for (options, expected) in cases {
        let error = connect_error(&options);
        assert!(error.contains(expected) && !error.contains("secret"), "{expected}: {error}");
    }
}

#[test]
fn a_password_is_used_never_shown_and_its_token_renewed() {
    logged();
    let mut etcd = Etcd::start().unwrap();
    etcd.add_user("weft", "s3cret-pass", "/weft/", true).unwrap();
    etcd.enable_auth().unwrap();
    let base = options(&etcd);
    let with = |name: &str, password: &str| EtcdOptions {
        username: Some(name.into()),
        password: Some(password.into()),
        ..base.clone()
    };
    let good = with("weft", "s3cret-pass");
    let (watch, _) = node(&etcd, &good);
    put_peer(&etcd, "10.5.1.0-24", "192.0.2.11");
    assert_added(&watch, "10.5.1.0/24", "192.0.2.11");
    // Tokens die with the server that gave them.
    etcd.stop().unwrap();
    etcd.start_again().unwrap();
    put_peer(&etcd, "10.5.2.0-24", "192.0.2.12");
    assert_added(&watch, "10.5.2.0/24", "192.0.2.12");
    etcd.delete(&key("10.5.9.0-24")).unwrap();
    weft_lab::eventually(SOON, || {
        anyhow::ensure!(etcd.get(&key("10.5.9.0-24"))?.is_some());
        Ok(())
    })
    .unwrap();

    for (case, options) in [("wrong", with("weft", "wr0ng-pass")), ("none", base.clone())] {
        let error = Registry::connect(&options).unwrap().fetch_config().unwrap_err();
        assert!(matches!(error, EtcdError::Refused(_)), "{case}: {error}");
        let shown = format!("{error}{error:?}");
        assert!(!shown.contains("s3cret") && !shown.contains("wr0ng"), "{error}");
    }
    let shown = format!("{good:?}{:?}{watch:?}", Registry::connect(&good).unwrap());
    assert!(!shown.contains("s3cret") && shown.contains("(not shown)"), "{shown}");
    assert!(!logged().contains("s3cret"));
}

#[test]
fn a_user_who_may_only_read_is_told_so() {
    let mut etcd = Etcd::start().unwrap();
    etcd.put("/weft/network/config", r#"{"Network": "10.5.0.0/16"}"#).unwrap();
    etcd.add_user("reader", "p", "/weft/", false).unwrap();
    etcd.enable_auth().unwrap();
    let reader = EtcdOptions { username: Some("reader".into()), password: Some("p".into()), ..options(&etcd) };
    let mut registry = Registry::connect(&reader).unwrap();
    assert_eq!(registry.fetch_config().unwrap(), conf());
    let error = registry.acquire(&conf(), &attrs("192.0.2.1"), &Subnets::default()).unwrap_err();
    assert!(matches!(error, EtcdError::Refused(_)) && error.to_string().contains("permission denied"), "{error}");
    // With a reservation that says what we would say there is nothing to write.
    etcd.put(&key("10.5.9.0-24"), &write_value(&attrs("192.0.2.1"))).unwrap();
    node(&etcd, &reader);
}

#[test]
fn a_password_that_etcd_does_not_ask_for_is_no_harm() {
    let etcd = Etcd::start().unwrap();
    let with = EtcdOptions { username: Some("a".into()), password: Some("b".into()), ..options(&etcd) };
    node(&etcd, &with);
}
