//go:build race

package throttle

// simSeeds is small under the race detector: the simulation has one goroutine.
const simSeeds = 1
