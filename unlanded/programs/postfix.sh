postconf -e inet_interfaces=127.0.0.1 mydestination=localhost myhostname=localhost maillog_file=/var/log/mail.log alias_maps= smtpd_relay_restrictions=permit_mynetworks,reject inet_protocols=ipv4 2>&1; sed -i 's/^smtp      inet/18170      inet/' /etc/postfix/master.cf; chmod 1777 /tmp; useradd -m bob; postfix start 2>&1 | tail -1; sleep 2
python3 - <<'P'
import smtplib
s=smtplib.SMTP('127.0.0.1',18170); print(s.ehlo()[0]); print(s.sendmail('a@localhost',['bob@localhost'],'Subject: x\n\nhello body\n')); s.quit()
P
echo body2 | sendmail bob@localhost; for i in $(seq 60); do [ "$(grep -c ^Subject: /var/mail/bob 2>/dev/null)" = 1 ] && [ "$(grep -c ^body2 /var/mail/bob)" = 1 ] && break; sleep 0.5; done; grep -E 'hello body|body2' /var/mail/bob | sort; mailq; postfix stop 2>&1 | tail -1; grep -iE 'fatal|panic|error' /var/log/mail.log | head -5
