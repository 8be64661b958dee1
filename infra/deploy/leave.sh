#!/bin/sh
# What a node does before it goes (Kubernetes: preStop; compose: before `ray stop`): the driver, where it is here, and
# training workers get SIGTERM and time to save. All ranks then leave after the step that they make, and training goes
# on from there on the machines that are left. Without this, Ray ends its workers with no word to them.
# Usage: plait-leave SECONDS   (less than the grace period)
names='^ray::RayTrainWorker|pipelines[.]cli[.]main|/plait run'
pkill -TERM -f "$names" || exit 0
left=${1:-150}
while [ "$left" -gt 0 ] && pgrep -f "$names" > /dev/null; do
  sleep 1
  left=$((left - 1))
done
