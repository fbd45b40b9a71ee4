//! The request's form and address, and every answer with its meaning.

use super::*;
use crate::store::session::Work;

fn sts(endpoint: Option<&str>, region: &str) -> Sts {
    let location = S3Location {
        bucket: "backups".into(),
        region: region.into(),
        endpoint: endpoint.map(str::to_owned),
        ..S3Location::default()
    };
    Sts { location, endpoint: None, role_arn: Some("arn:aws:iam::1:role/tidemark".into()) }
}

#[test]
fn sts_is_the_stores_own_or_awss_of_the_region() {
    for (endpoint, region, url) in [
        (Some("https://minio.example:9000"), "us-east-1", "https://minio.example:9000"),
        (None, "eu-central-1", "https://sts.eu-central-1.amazonaws.com"),
        (Some("https://s3.eu-central-1.amazonaws.com"), "eu-central-1", "https://sts.eu-central-1.amazonaws.com"),
        (None, "cn-north-1", "https://sts.cn-north-1.amazonaws.com.cn"),
    ] {
        assert_eq!(sts(endpoint, region).url(), url);
    }
    let own = Sts { endpoint: Some("https://sts.example".into()), ..sts(None, "eu-central-1") };
    assert_eq!(own.url(), "https://sts.example");
}

#[test]
fn law_11_the_secret_signs_and_is_not_sent() {
    let key = Credentials { access_key_id: "AKID".into(), secret_access_key: "SeCrEt".into(), session_token: None };
    let attempt = crate::model::AttemptId::new(1_700_000_000_000, [7; 10]);
    let volume = "pvc-demo".parse().expect("a volume name");
    let scope = Scope { volume, uid: "uid".into(), attempt, work: Work::Backup };
    let body = sts(None, "eu-central-1").form("{\"a\": \"b/*\"}", &scope);
    assert_eq!(
        body,
        format!(
            "Action=AssumeRole&Version=2011-06-15&DurationSeconds=3600&RoleSessionName=tidemark-{}&Policy=%7B%22a%22%3A+%22b%2F*%22%7D&RoleArn=arn%3Aaws%3Aiam%3A%3A1%3Arole%2Ftidemark",
            scope.attempt
        )
    );
    let now = "2026-11-25T22:00:00Z".parse().expect("a time");
    let request = signed("https://sts.example/", "eu-central-1", &key, body, now).expect("signed");
    let said = request.headers().get("authorization").unwrap_or_default();
    assert!(said.starts_with("AWS4-HMAC-SHA256 Credential=AKID/20261125/eu-central-1/sts/aws4_request"), "{said}");
    assert!(said.contains("host") && said.contains("content-type") && said.contains("x-amz-date"), "{said}");
    assert!(!format!("{request:?}").contains("SeCrEt"));
}

const SESSION: &str = "<?xml version=\"1.0\"?>\n<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\n<AssumeRoleResult><Credentials><AccessKeyId>ASIA1</AccessKeyId><SecretAccessKey>s/+=</SecretAccessKey><SessionToken>\n t&amp;o== </SessionToken><Expiration>2026-11-25T23:00:00Z</Expiration></Credentials></AssumeRoleResult>\n</AssumeRoleResponse>\n";

#[test]
fn a_session_is_renewed_when_half_of_its_life_is_over() {
    let now = "2026-11-25T22:00:00Z".parse().expect("a time");
    let session = read("http://a", 200, SESSION, now).expect("a session");
    assert_eq!(
        session.credentials,
        Credentials {
            access_key_id: "ASIA1".into(),
            secret_access_key: "s/+=".into(),
            session_token: Some("t&o==".into())
        }
    );
    assert_eq!(session.renew_at().to_string(), "2026-11-25T22:30:00Z");
}

#[test]
fn law_11_half_an_answer_is_no_session() {
    let now: Timestamp = "2026-11-25T22:00:00Z".parse().expect("a time");
    for end in 0..SESSION.trim_end().len() {
        assert!(read("http://a", 200, &SESSION[..end], now).is_err(), "{end} bytes");
    }
    for name in ["AccessKeyId", "SecretAccessKey", "SessionToken", "Expiration"] {
        let without = SESSION.replace(&format!("<{name}>"), "<Other>");
        let error = read("http://a", 200, &without, now).expect_err(name);
        assert!(error.seen.contains(name), "{error}");
    }
    let late = now + jiff::SignedDuration::from_hours(1);
    let error = read("http://a", 200, SESSION, late).expect_err("it ended");
    assert_eq!(error.kind, ErrorKind::Refused(FailureReason::ClockSkew), "{error}");
}

#[test]
fn every_refusal_of_sts_is_told_with_its_cure() {
    use FailureReason::{ClockSkew, SessionRefused};
    let now = "2026-11-25T22:00:00Z".parse().expect("a time");
    for (status, code, kind, cure) in [
        (403, "AccessDenied", ErrorKind::Refused(SessionRefused), "that role's trust policy"),
        (403, "InvalidClientTokenId", ErrorKind::Refused(SessionRefused), "the access key is unknown there"),
        (403, "SignatureDoesNotMatch", ErrorKind::Refused(SessionRefused), "correct the secret key"),
        (400, "PackedPolicyTooLarge", ErrorKind::Refused(SessionRefused), "a shorter spec.s3.prefix"),
        (400, "MalformedPolicyDocument", ErrorKind::Refused(SessionRefused), "does not take our session policy"),
        (400, "ValidationError", ErrorKind::Refused(SessionRefused), "correct credentials.roleArn"),
        (404, "NoSuchEntity", ErrorKind::Refused(SessionRefused), "there is no such role"),
        (405, "MethodNotAllowed", ErrorKind::Refused(SessionRefused), "no STS answers there"),
        (501, "NotImplemented", ErrorKind::Refused(SessionRefused), "no STS answers there"),
        (200, "", ErrorKind::Refused(SessionRefused), "no STS answers there"),
        (404, "", ErrorKind::Refused(SessionRefused), "no STS answers there"),
        (403, "Unheard", ErrorKind::Refused(SessionRefused), "correct credentials.roleArn"),
        (400, "RequestExpired", ErrorKind::Refused(ClockSkew), "NTP"),
        (400, "Throttling", ErrorKind::Throttled, ""),
        (503, "", ErrorKind::Throttled, ""),
        (500, "InternalFailure", ErrorKind::Unavailable, "check credentials.stsEndpoint"),
        (502, "", ErrorKind::Unavailable, "check credentials.stsEndpoint"),
    ] {
        let document = match code {
            "" => "<html>hello</html>".to_owned(),
            code => format!(
                "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>User: &quot;a&quot;.</Message></Error></ErrorResponse>"
            ),
        };
        let error = read("http://a", status, &document, now).expect_err(code);
        assert_eq!(error.kind, kind, "{error}");
        let words = error.to_string();
        assert!(words.starts_with("AssumeRole at http://a: HTTP") && words.contains(cure), "{words}");
        assert!(code.is_empty() || words.contains("User: \"a\""), "{words}");
    }
}
