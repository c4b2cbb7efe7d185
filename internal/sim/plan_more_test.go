package sim

import "time"

// drawMore draws what does not change the rest of a plan, from dice of its own.
func (p *plan) drawMore(d dice) {
	p.keep = !p.calm && d.oneIn(2)
	if d.oneIn(8) {
		p.grid, p.latency = gridStep, 0 // calls take no time
		for i := range p.msgs {
			p.msgs[i].at = p.msgs[i].at.Round(gridStep)
			p.msgs[i].delay = p.msgs[i].delay.Round(gridStep)
		}
		for i := range p.faults {
			p.faults[i].at = p.faults[i].at.Round(gridStep)
		}
	}
	if !p.calm && d.oneIn(12) {
		p.drawBehind(d)
	}
	if !p.calm && d.oneIn(6) {
		p.drawChanges(d)
	}
}

// drawBehind lets the back end's clock go back by about a window, and processes
// start after that: they are behind those that were there before.
func (p *plan) drawBehind(d dice) {
	at := d.between(p.load/4, p.load)
	p.faults = append(p.faults, fault{at: at, kind: fStep, dur: -d.between(50*time.Millisecond, 2*time.Second)})
	for range 1 + d.IntN(3) {
		p.faults = append(p.faults, fault{
			at: at + d.upTo(500*time.Millisecond), kind: fCrash, phase: 2, proc: d.IntN(len(p.procs)), dur: d.upTo(100 * time.Millisecond),
		})
	}
}

// gridStep is half a second divided by ten, so that windows end on the grid, too.
const gridStep = 50 * time.Millisecond

// drawChanges lets consumers end a delivery in another way when they do not know
// what came of the first, and many first ways end like that.
func (p *plan) drawChanges(d dice) {
	for i := range p.msgs {
		for k := range p.msgs[i].fates {
			f := &p.msgs[i].fates[k]
			f.change = d.IntN(4) > 0
			if f.verb == doAck && d.oneIn(4) {
				f.verb = pickOne(d, doNack, doRelease)
			}
		}
	}
	for range 4 + d.IntN(12) {
		f := fault{at: d.upTo(p.load + p.load/2), kind: pickOne(d, fAfter, fNever, fLater), proc: d.IntN(len(p.procs)), method: mApply}
		if f.kind == fLater {
			f.dur = d.upTo(p.lease / 3)
		}
		p.faults = append(p.faults, f)
	}
}
