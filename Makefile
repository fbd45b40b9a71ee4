# What a person does with this checkout. `make` alone explains.

.DEFAULT_GOAL := help
.PHONY: help demo test soak bench fmt lint generate audit clean-parts

help: ## This text
	@echo "Tidemark backs up Kubernetes volumes block by block to S3, with a progress that cannot lie."
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "Needs: Rust 1.95, and for demo and test Go 1.26 or pip (both build a real kube-apiserver and an S3 server once, about 9 minutes)."
	@echo "One test:     tools/test.sh --test support_selftest"
	@echo "In an editor: export TIDEMARK_PARTS=\$$(tools/parts.sh), then cargo test as usual."

demo: ## The whole story on this machine: backup, cut wire, healing, restore. ARGS="--size 512Mi --keep"
	@tools/demo.sh $(ARGS)

test: ## Formatting, lints and all tests, against a real API server and a real S3 server
	@tools/test.sh $(ARGS)

soak: ## What takes long, by hand, as root: every late delivery, 500 seeds, slow sources, ten minutes of zeros
	@tools/soak.sh $(ARGS)

fmt: ## Formats the code
	cargo fmt

lint: ## Formatting and lints only
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings

generate: ## Writes what is generated from the types: crds/ and docs/resources.md
	cargo test --quiet --test crds generate -- --exact --ignored

bench: ## Speed and memory beside others, on this machine (release build, 8 GiB of /dev/shm; ARGS="MIB [s3]")
	@tools/bench.sh $(ARGS)

audit: ## Licences, advisories and duplicates of the dependencies, by cargo-deny (needs the network)
	@command -v cargo-deny >/dev/null || { echo "cargo-deny is missing: cargo install --locked cargo-deny"; exit 1; }
	cargo deny check

clean-parts: ## Removes the cached etcd, kube-apiserver, kubectl and versitygw
	rm -rf "$${TIDEMARK_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/tidemark}/parts"
