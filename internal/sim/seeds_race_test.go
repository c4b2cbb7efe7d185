//go:build race

package sim

// defaultSeeds is how many seeds a plain go test runs: the race detector makes
// each cost several times as much. make sim runs more.
const defaultSeeds = 100
