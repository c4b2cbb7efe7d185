package bench

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"testing"
	"time"
	"path/filepath"

	"github.com/mvalve/mvalve/queue"
	"github.com/mvalve/mvalve/queue/sqlite"
	"github.com/mvalve/mvalve/queue/mysql"
	"github.com/mvalve/mvalve/valve"
)

func quickStore(t *testing.T, kind string) queue.Store {
	switch kind {
	case "memory":
		return queue.NewMemory()
	case "sqlite":
		s, err := sqlite.Open(context.Background(), sqlite.Config{Path: filepath.Join(t.TempDir(), "b.db")})
		if err != nil { t.Fatal(err) }
		return s
	}
	c, err := mysql.ParseURL(os.Getenv("QURL"))
	if err != nil { t.Fatal(err) }
	s, err := mysql.OpenForInit(context.Background(), c)
	if err != nil { t.Fatal(err) }
	if err := s.Init(context.Background()); err != nil { t.Fatal(err) }
	return s
}

func wchar() (n int64) {
	b, _ := os.ReadFile("/proc/self/io")
	var r int64
	fmt.Sscanf(string(b), "rchar: %d\nwchar: %d", &r, &n)
	return n
}

func TestQuick(t *testing.T) {
	kind := os.Getenv("QKIND")
	if kind == "" { t.Skip() }
	ctx := context.Background()
	d := 4 * time.Second
	if os.Getenv("QRAW") != "" {
		for _, c := range []rawCase{{1000, 2}, {1, 64}} {
			s := quickStore(t, kind)
			w0 := wchar()
			sp, err := measureRaw(ctx, s, c, d)
			fmt.Printf("%s %v: %.0f/s cpu %.1f us/msg, %.0f bytes/msg %v\n", kind, c, sp.perSecond(), float64(sp.cpu.Microseconds())/float64(sp.count), float64(wchar()-w0)/float64(sp.count)*4/4.5, err)
			s.Close()
		}
	}
	for _, mode := range []string{"batched", "single"} {
		if m := os.Getenv("QMODE"); m != "" && m != mode { continue }
		s := quickStore(t, kind)
		var cs *calls
		if ws, c, err := watch(s); err == nil { s, cs = ws, c }
		w, err := valve.NewWriter(ctx, s, valve.WriterConfig{})
		if err != nil { t.Fatal(err) }
		r, err := valve.OpenReader(ctx, s, valve.ReaderConfig{Writer: w})
		if err != nil { t.Fatal(err) }
		f := batchedFlow(w, r, destinations)
		if v := os.Getenv("QDEST"); v != "" { fmt.Sscan(v, &f.destinations) }
		if v := os.Getenv("QBACK"); v != "" { fmt.Sscan(v, &f.backlog); f.credit = f.backlog/2 }
		if mode == "single" { f = singleFlow(w, r, destinations) }
		if p := os.Getenv("QPROF"); p != "" {
			runtime.SetMutexProfileFraction(20)
			runtime.SetBlockProfileRate(10000)
			fl, _ := os.Create(p + "." + kind + "." + mode + ".cpu")
			pprof.StartCPUProfile(fl)
			defer fl.Close()
		}
		w0 := wchar()
		sp, err := f.run(ctx, d)
		fmt.Printf("  %.0f bytes/msg\n", float64(wchar()-w0)/float64(f.acked.Load()))
		pprof.StopCPUProfile()
		if p := os.Getenv("QPROF"); p != "" {
			for _, n := range []string{"mutex", "allocs", "block"} {
				fl, _ := os.Create(p + "." + kind + "." + mode + "." + n)
				pprof.Lookup(n).WriteTo(fl, 0)
				fl.Close()
			}
		}
		fmt.Printf("%s %s: %.0f/s cpu %.1f us/msg %v stats %+v\n", kind, mode, sp.perSecond(), float64(sp.cpu.Microseconds())/float64(max(sp.count,1)), err, r.Stats())
		fmt.Println("   calls:", cs)
		r.Close()
		w.Close()
		s.Close()
	}
}
