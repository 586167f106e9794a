set -e
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b GIT_AUTHOR_DATE='2020-01-01T00:00:00Z' GIT_COMMITTER_DATE='2020-01-01T00:00:00Z'
mkdir /tmp/r && cd /tmp/r && git init -q -b main .
for i in 1 2 3 4 5; do seq $((i*100)) > f$i; git add -A; git commit -q -m "c $i"; done
git checkout -q -b side HEAD~2; echo side > s; git add s; git commit -q -m side
git checkout -q main; git merge -q --no-edit side
git log --format='%h %s' --graph
cd /tmp; git clone -q /tmp/r c1; git clone -q file:///tmp/r c2; git -C c2 log --oneline | wc -l
cd c1; git checkout -q -b feature; seq 50 > f1; git commit -qam change; git push -q origin feature
git -C /tmp/r branch --list; git diff --stat HEAD~1
git gc -q; git fsck; git count-objects -v | grep packs
git stash list; git grep -c 99 | head -3; git rebase -q main && git rev-parse HEAD
git archive --format=tar HEAD | tar -tf - | sort | head; git bundle create -q /tmp/b.bundle --all && git clone -q /tmp/b.bundle /tmp/c3 -b main && ls /tmp/c3
