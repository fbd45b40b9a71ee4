# What a person does with this checkout. `make` alone explains.

.DEFAULT_GOAL := help
.PHONY: help demo test soak bench fmt lint generate audit clean-parts e2e e2e-up e2e-down e2e-node-test e2e-image

help: ## This text
	@echo "Tidemark backs up Kubernetes volumes block by block to S3, with a progress that cannot lie."
	@echo
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "Needs: Rust 1.95, and for demo and test Go 1.26 or pip (both build a real kube-apiserver and an S3 server once, about 9 minutes)."
	@echo "One test:     tools/test.sh --test operator support_selftest"
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
	cargo test --quiet --test project crds::generate -- --exact --ignored

bench: ## Speed, memory and where the time goes, beside others, on this machine (release build, 8 GiB of /dev/shm; ARGS="MIB [s3]")
	@tools/bench.sh $(ARGS)

audit: ## Licences, advisories and duplicates of the dependencies, by cargo-deny (needs the network)
	@command -v cargo-deny >/dev/null || { echo "cargo-deny is missing: cargo install --locked cargo-deny"; exit 1; }
	cargo deny check

e2e: ## A backup on a real cluster, by the chart, with the network cut (root; Linux). ARGS="--debug quickstart"
	@tools/e2e/run.sh $(ARGS)

e2e-up: ## Starts a real single-node Kubernetes with CSI snapshots and leaves it running (root; Linux)
	@tools/e2e/up.sh

e2e-down: ## Takes it away, with all that it left
	@tools/e2e/down.sh

e2e-node-test: ## Checks that node: volumes, snapshots, kills, and that nothing is left behind (root)
	@tools/e2e/selftest.sh

e2e-image: ## The image, by hand: static, loaded into the node if it runs. ARGS=--debug is quicker
	@tools/e2e/image.sh $(ARGS)

clean-parts: ## Removes the cached programs of tests, demo and e2e node
	cache="$${TIDEMARK_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/tidemark}"; rm -rf "$$cache/parts" "$$cache/cluster"
