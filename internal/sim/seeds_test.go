//go:build !race

package sim

// defaultSeeds is how many seeds a plain go test runs.
const defaultSeeds = 500
