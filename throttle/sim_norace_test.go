//go:build !race

package throttle

const simSeeds = 3
