//go:build race

package proof_test

// raceDetector: these tests run under the race detector, which the processes do
// without: it would take the processor time that the limits are judged by.
const raceDetector = true
