// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Command evaluate sends generated traffic through the XDP program, which is attached to a
// device, with generated arrival times. It shows which packets are flagged although nothing is
// planted, and which planted delays and channels are found. It exits with an error if a bound
// is not met.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"sync"
)

// defaultSeeds are the seeds of the figures in the documents.
var defaultSeeds = []uint64{1, 2, 3}

func main() {
	seed := flag.Uint64("seed", 0, "seed of the random numbers; 0 for the seeds of the documents")
	only := flag.String("only", "", "regular expression of the experiments to run, matched with names such as 'detection: constant, log2, +5σ'")
	write := flag.String("write", "", "write tables, figures and plots into the documents of the repository in this directory")
	traces := flag.String("traces", "", "directory with recorded times, for the experiments with recordings")
	flag.Parse()

	seeds := defaultSeeds
	if *seed != 0 {
		seeds = []uint64{*seed}
	}
	if err := evaluate(os.Stdout, seeds, *only, *write, *traces); err != nil {
		fmt.Fprintln(os.Stderr, "evaluate:", err)
		os.Exit(1)
	}
}

func evaluate(w io.Writer, seeds []uint64, only, repository, traces string) error {
	if repository != "" && (!slices.Equal(seeds, defaultSeeds) || only != "") {
		return errors.New("the documents need the figures of all experiments with the default seeds: leave out --write")
	}
	wanted, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	recorded, err := recordings(traces)
	if err != nil {
		return err
	}
	isWanted := func(q question) bool { return wanted.MatchString(q.String()) }
	r, err := runSeeds(w, seeds, isWanted)
	if err != nil {
		return err
	}
	// Recordings are judged without devices.
	if r.Recordings, err = (&lab{}).runThese(w, recorded, seeds[0], 1, isWanted); err != nil {
		return err
	}
	if repository != "" {
		if err := r.write(repository); err != nil {
			return err
		}
	}
	return r.failed()
}

// runSeeds runs the wanted experiments with the first seed, and those with a bound with the other
// seeds too, all at the same time. Each seed has devices of its own.
func runSeeds(w io.Writer, seeds []uint64, isWanted func(question) bool) (*report, error) {
	results, errs := make([][]result, len(seeds)), make([]error, len(seeds))
	var group sync.WaitGroup
	for i, seed := range seeds {
		group.Go(func() {
			var l *lab
			if l, errs[i] = newLab(); errs[i] != nil {
				return
			}
			l.cpu = i
			results[i], errs[i] = l.runAll(w, seed, 1, func(q question) bool { return isWanted(q) && (i == 0 || q.Bound.isAsked()) })
			errs[i] = errors.Join(errs[i], l.close())
		})
	}
	group.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	r := &report{Seeds: seeds, Results: results[0]}
	for _, others := range results[1:] {
		r.add(others)
	}
	return r, nil
}

// runAll runs the wanted experiments with a part of their packets, 1 for all, and prints each
// result after its seed.
func (l *lab) runAll(w io.Writer, seed uint64, part float64, isWanted func(question) bool) ([]result, error) {
	return l.runThese(w, experiments(), seed, part, isWanted)
}

func (l *lab) runThese(w io.Writer, all []experiment, seed uint64, part float64, isWanted func(question) bool) ([]result, error) {
	var results []result
	for _, e := range all {
		if !isWanted(e.question()) {
			continue
		}
		found, err := e.run(l, seed, part)
		if err != nil {
			return nil, err
		}
		results = append(results, found)
		verdict := ""
		switch {
		case found.Bound.isAsked() && found.IsMet:
			verdict = found.Bound.String() + ": met"
		case found.Bound.isAsked():
			verdict = found.Bound.String() + ": NOT MET"
		}
		fmt.Fprintf(w, "%d  %-58v  %-30v  %-26s  %s\n", seed, found.question, found.figure, found.counted(), verdict)
	}
	return results, nil
}
