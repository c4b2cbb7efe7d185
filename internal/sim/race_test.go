//go:build race

package sim

// raceEnabled: the searches run one step at a time and would only take longer.
const raceEnabled = true
