//! The policy as it goes over the wire, and what is never in it.

use super::*;

fn location() -> S3Location {
    S3Location {
        bucket: "backups".into(),
        prefix: "prod/".into(),
        region: "eu-central-1".into(),
        endpoint: Some("http://minio:9000".into()),
        ..S3Location::default()
    }
}

fn scope(volume: &str, work: Work) -> Scope {
    Scope {
        volume: volume.parse().expect("a volume name"),
        uid: "3f0c2d1e-aaaa-bbbb-cccc-000000000001".into(),
        attempt: AttemptId::new(1_700_000_000_000, [7; 10]),
        work,
    }
}

#[test]
fn law_11_the_session_policy_of_a_backup_is_its_volumes_folder() {
    let scope = scope("pvc-demo", Work::Backup);
    let layout = VolumeLayout::new(&scope.volume);
    let record = layout.backup(&BackupName::of_attempt(&scope.uid, &scope.attempt));
    let lock = layout.lock(&scope.attempt);
    let folder = "prod/backupstore/volumes/05/86/pvc-demo/";
    let arn = format!("arn:aws:s3:::backups/{folder}");
    let uid = &scope.uid;
    let expected = json!({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": "arn:aws:s3:::backups",
         "Condition": {"StringLike": {"s3:prefix": format!("{folder}*")}}},
        {"Effect": "Allow", "Action": "s3:GetObject", "Resource": format!("{arn}*")},
        {"Effect": "Allow", "Action": "s3:PutObject", "Resource": format!("{arn}*")},
        {"Effect": "Allow", "Action": "s3:DeleteObject", "Resource": [
            format!("arn:aws:s3:::backups/prod/{lock}"),
            format!("{arn}tidemark/{uid}/*"),
            format!("{arn}backups/backup_tidemark-*"),
            format!("arn:aws:s3:::backups/prod/{record}"),
        ]},
    ]});
    assert_eq!(policy(&location(), &scope), Ok(expected.to_string()));
}

#[test]
fn law_11_the_session_policy_of_a_restore_writes_its_lock_and_nothing_else() {
    let scope = scope("pvc-demo", Work::Restore);
    let text = policy(&location(), &scope).expect("short");
    let lock = VolumeLayout::new(&scope.volume).lock(&scope.attempt);
    let own = json!({
        "Effect": "Allow",
        "Action": ["s3:PutObject", "s3:DeleteObject"],
        "Resource": format!("arn:aws:s3:::backups/prod/{lock}"),
    });
    let document: Value = serde_json::from_str(&text).expect("JSON");
    let writes: Vec<&Value> = document["Statement"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|s| s["Action"].to_string().contains("PutObject") || s["Action"].to_string().contains("Delete"))
        .collect();
    assert_eq!(writes, [&own], "{text}");
}

#[test]
fn law_11_a_name_in_which_iam_would_see_a_pattern_gets_no_session() {
    for prefix in ["team*/", "team?/", "${aws:username}/", "a\"b/", "ä/"] {
        let location = S3Location { prefix: prefix.into(), ..location() };
        let error = policy(&location, &scope("pvc-demo", Work::Backup)).expect_err(prefix);
        assert_eq!(error.kind, ErrorKind::Refused(FailureReason::SessionRefused));
        assert!(error.seen.contains("would see a pattern"), "{error}");
    }
}

#[test]
fn a_policy_that_sts_would_refuse_is_refused_here_with_the_cure() {
    let long = S3Location { prefix: format!("{}/", "p".repeat(511)), ..location() };
    let error = policy(&long, &scope("pvc-demo", Work::Backup)).expect_err("too long");
    assert!(error.seen.contains("STS takes 2048: give the target a shorter spec.s3.prefix"), "{error}");
    // The longest names of a volume fit, with a prefix of some folders, on AWS too.
    let aws = S3Location { prefix: format!("{}/", "p".repeat(80)), endpoint: None, ..location() };
    let volume = "v".repeat(40);
    let text = policy(&aws, &scope(&volume, Work::Backup)).expect("it fits");
    assert!(text.contains("kms:ViaService"), "{text}");
}

#[test]
fn resources_are_named_as_their_part_of_aws_names_them() {
    for (region, endpoint, arn) in [
        ("eu-central-1", None, "arn:aws:s3:::backups/"),
        ("cn-north-1", None, "arn:aws-cn:s3:::backups/"),
        ("us-gov-west-1", Some("https://s3.us-gov-west-1.amazonaws.com"), "arn:aws-us-gov:s3:::backups/"),
        ("cn-north-1", Some("https://minio.example"), "arn:aws:s3:::backups/"),
    ] {
        let location = S3Location { region: region.into(), endpoint: endpoint.map(str::to_owned), ..location() };
        let text = policy(&location, &scope("pvc-demo", Work::Backup)).expect("short");
        assert!(text.contains(arn), "{region}: {text}");
        assert_eq!(text.contains("kms:"), is_aws(&location), "{text}");
    }
}
