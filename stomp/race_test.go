//go:build race

package stomp

// raceEnabled: the race detector has memory of its own.
const raceEnabled = true
