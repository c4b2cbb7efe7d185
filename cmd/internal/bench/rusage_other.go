//go:build !unix

package bench

import "time"

// cpuTime is not known here; figures that need it read 0.
func cpuTime() time.Duration { return 0 }
