package testserver

import (
	"os"
	"sync"
	"testing"
)

// TestSweepSparesTheLiving: others sweep at every moment while folders are made.
func TestSweepSparesTheLiving(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	stop := make(chan struct{})
	var sweepers sync.WaitGroup
	for range 4 {
		sweepers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					sweep()
				}
			}
		})
	}
	for range 200 {
		dir, lock, err := lockedDir()
		if err != nil {
			t.Errorf("a folder that is being made: %v", err)
			continue
		}
		for range 10 {
			if _, err := os.Stat(dir); err != nil {
				t.Errorf("a folder in use: %v", err)
				break
			}
		}
		lock.Close() // as if its process had died
	}
	close(stop)
	sweepers.Wait()
	sweep()
	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) > 0 {
		t.Errorf("%d folders of the dead are left, %v", len(left), err)
	}
}
