package bench

import (
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strings"

	"github.com/mvalve/mvalve/cmd/internal/setup"
)

// profiled runs fn and, with --profile, leaves its profiles in files named for
// the case.
func (s *session) profiled(name string, fn func() error) error {
	folder := s.c.String("profile")
	if folder == "" {
		return fn()
	}
	base := filepath.Join(folder, strings.NewReplacer(" ", "-", ",", "", "/", "-").Replace(name))
	cpu, err := os.Create(base + ".cpu")
	if err != nil {
		return setup.Failf(setup.ExitOutput, "--profile: %w", err)
	}
	defer cpu.Close()
	before := runtime.SetMutexProfileFraction(20)
	defer runtime.SetMutexProfileFraction(before)
	if err := pprof.StartCPUProfile(cpu); err != nil {
		return setup.Failf(setup.ExitOutput, "--profile: %w", err)
	}
	err = fn()
	pprof.StopCPUProfile()
	for _, kind := range []string{"allocs", "mutex"} {
		if e := writeProfile(base+"."+kind, kind); err == nil && e != nil {
			err = setup.Failf(setup.ExitOutput, "--profile: %w", e)
		}
	}
	return err
}

func writeProfile(path, kind string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	err = pprof.Lookup(kind).WriteTo(f, 0)
	if e := f.Close(); err == nil {
		err = e
	}
	return err
}
