# mvalve. `make` shows what there is; every target says what it misses.

# Commands are static: no cgo anywhere. Tests switch it on for the race detector.
export CGO_ENABLED ?= 0

BIN := bin
FUZZTIME ?= 10s
ONLY ?=
FILE ?=
ROUNDS ?= 1000
CHAOS_SEED ?=
PKG ?= ./...
TESTFLAGS ?=

.DEFAULT_GOAL := help
.PHONY: help go build demo test proof chaos sim servers bench fuzz defects mutants lint fmt clean

help: ## show this list
	@echo "mvalve: make TARGET"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

go:
	@sh build/check-go.sh

build: go ## build bin/mvalve, bin/mvalve-writer and bin/mvalve-reader
	@mkdir -p $(BIN)
	go build -trimpath -o $(BIN)/ ./cmd/mvalve ./cmd/mvalve-writer ./cmd/mvalve-reader

demo: build ## the main job in 20 seconds: messages to throttled destinations
	$(BIN)/mvalve demo

test: go ## all tests with -race, on real MariaDB and memcached (fetched if missing)
	@PKG='$(PKG)' TESTFLAGS='$(TESTFLAGS)' sh build/test.sh

proof: servers ## long runs against real processes: limits, kill -9, lost caches
	MVALVE_PROOF=long go test -count=1 -timeout 60m -v ./internal/proof

sim: go ## simulate SEEDS (2000) seeds with faults in virtual time; SEED is the first, JOBS processes share them
	@SEEDS='$(SEEDS)' SEED='$(SEED)' JOBS='$(JOBS)' sh build/sim.sh

chaos: servers ## kill, cut, stall and fill everything at random for ROUNDS (1000) on each back end; CHAOS_SEED repeats a plan
	MVALVE_CHAOS_ROUNDS=$(ROUNDS) CHAOS_SEED=$(CHAOS_SEED) go test -count=1 -timeout 6h -v -run TestChaos ./internal/chaos

servers: go ## make sure that the tests find MariaDB, memcached and STOMP clients
	go run ./internal/testserver/cmd/fetch
	-go run ./internal/foreign/cmd/fetch

bench: build ## throughput and latency, with the raw statements beside them
	$(BIN)/mvalve bench

fuzz: go ## run every fuzz target for FUZZTIME (10s)
	@sh build/fuzz.sh $(FUZZTIME)

defects: servers ## put deliberate defects into a copy, one at a time: the tests must catch each
	@sh build/defects.sh '$(ONLY)'

mutants: go ## change operators in the limiter, ready index and scheduler: the tests must catch 90 %; PKG is throttle or valve, FILE one of its files
	@sh build/mutants.sh '$(filter throttle valve,$(PKG))' '$(FILE)'

lint: go ## go vet, gofmt and golangci-lint
	@sh build/lint.sh

fmt: go ## format the code
	gofmt -w $$(git ls-files '*.go')

clean: ## remove what make built
	rm -rf $(BIN)
