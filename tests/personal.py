"""Sentences with personal data, marked as {kind:value}, and such as only look like it. All numbers are made
up, or those that their issuers give as examples."""

SENTENCES = r"""
Write to {email:joe@example.com}.
Send it to {email:anna.maria+list@mail.example.co.uk}, or to {email:x_y-z@example.museum}!
<{email:first.last@sub.example.org}> wrote: thanks
mailto:{email:o'brien@example.ie}?subject=hi
{email:müller@straße.example} und {email:info@xn--strae-oqa.example}
联系邮箱{email:zhang.wei@example.cn}谢谢
https://example.com/unsubscribe?email={email:joe@example.com}&id=7
https://example.com/u/{email:joe%40example.com}/edit
Contact..................{email:joe@example.com}
{email:JOE@EXAMPLE.COM};{email:ann@example.com}
"email":"{email:ann@example.com}","age":7
{email:ｊｏｅ＠ｅｘａｍｐｌｅ．ｃｏｍ} is full-width
почта {email:иван@пример.рф} моя
The icon is icon@2x.png and the mention is @joe.
@app.route and @pytest.fixture are decorators, user@localhost is not routed
Meet me @ example.com at 5 @ 3.50 each
npm i left-pad@1.3.0 react@18.2.0
a@b is short, x@@y.z has two
Call {phone:+1 415 555 2671} today.
{phone:+49 (0) 30 123456}, {phone:+49 30 12345678}, {phone:+493012345678}
{phone:+44 20 7946 0958} or {phone:+44 (0)20 7946 0958}
{phone:+33 1 23 45 67 89}; {phone:+86 138 1234 5678}; {phone:+81-3-1234-5678}
From abroad dial {phone:0049 30 12345678}
Ring {phone:(415) 555-2671} or {phone:415-555-2671} or {phone:415.555.2671}.
Ring {phone:1-415-555-2671} or {phone:020 7946 0958} or {phone:07911123456}
Appelez le {phone:01 23 45 67 89} ou le {phone:06.12.34.56.78}
Telefon: {phone:030 1234567}, Fax: {phone:030/7654321}, Handy {phone:0171 2345678}
我的手机号是{phone:13812345678}，请联系我
手机：{phone:138-1234-5678} 或 {phone:138 1234 5678}
座机 {phone:010-12345678}，上海 {phone:021-62345678}
電話は {phone:03-1234-5678} です
My phone number is {phone:5550123}.
"phone": "{phone:4155552671}"
tel:{phone:+14155550100}
call me at {phone:555 0100 22}
Phone no. {phone:04 12345678}
１３ is no phone, {phone:１３８１２３４５６７８} is
{phone:212-555-0187} x12
The order 4155552671 was shipped on 2024-03-15 at 12:30:45.
Born 01.02.1990, met on 12/11/2023, left on 1990-01-02 10:20
It cost 1 234 567 890 in 2019 and 2,345,678 in 2020
1732700000 and 1732700000123 are times
pi is 3.14159265358979 and e 2.718281828459045
pages 100-200, 300-400; ISBN 978-3-16-148410-0
The score was 21-19 18-21 21-17 after 95 minutes
matrix 10 20 30 40 50 60 70 80 90
0.001 0.002 0.003 0.0015 1e-10
#0012345 ticket-0012345678 SKU 0123-4567
+1 +2 +3 and 5+7=12, C++ 17, +100%
commit 4155552671abcdef, uuid 550e8400-e29b-41d4-a716-446655440000
12345678901 and 98765432109 are just long
I would call 911 or 112; call function 12 times
Pay with {card:4111 1111 1111 1111} please
Pay with {card:4111111111111111}, {card:5500-0000-0000-0004}, {card:340000000000009}
{card:3782 822463 10005} exp 12/27 cvv 123
{card:4111 1111 1111 1111} 123
ref 17 {card:6011 0000 0000 0004}
卡号{card:6222021234567890128}，谢谢
card:{card:2223003122003222}.
{card:3530111333300000} {card:30569309025904}
４ is no card, {card:４１１１１１１１１１１１１１１１} is
4111 1111 1111 1112 fails the check, so does 5500000000000005
41111111111111111111111111 is longer
4111 1111 1111 and 1111
order id X4111111111111111Y, 0.4111111111111111
1000000000000008 has no issuer, nor 9000 0000 0000 0001
4111
1111 1111 1111 is broken over lines
Konto {iban:DE89370400440532013000}, BIC COBADEFFXXX
Konto {iban:DE89 3704 0044 0532 0130 00}.
{iban:GB29 NWBK 6016 1331 9268 19} paid; {iban:NL91ABNA0417164300}
{iban:FR14 2004 1010 0505 0001 3M02 606} and {iban:MT84 MALT 0110 0001 2345 MTLC AST0 01S}
iban={iban:ch9300762011623852957}
{iban:BE68 5390 0754 7034} this will be paid
{iban:NO9386011117947},{iban:ES91-2100-0418-4502-0005-1332}
账号{iban:DE89370400440532013000}是我的
DE88370400440532013000 fails the check; XX89370400440532013000 has no country
DE8937040044053201300 is too short, DE893704004405320130001 too long
AB12 CDEF GHIJ KLMN OPQR and GB29 RULES
SHA1 3FA9 77B2 0C1D 99AA 1234
client {ip:8.8.8.8}:443 and {ip:203.0.113.7}/24, {ip:10.0.0.12}
{ip:2001:db8::1} and [{ip:2001:0db8:85a3:0000:0000:8a2e:0370:7334}]:80
{ip:fe80::1ff:fe23:4567:890a}%eth0, {ip:::ffff:192.0.2.128}
ip={ip:192.168.1.1}.
来自{ip:192.168.1.1}的请求
listening on 127.0.0.1:8000, 0.0.0.0 and ::1; mask 255.255.255.0
version 1.2.3.4 and v1.2.3.4 and 1.2.3.4.5
256.1.1.1 and 1.2.3 and 01.02.03.04
12:30:45 to 13:00:00, 00:1a:2b:3c:4d:5e
std::dec, Foo::Bar, a::b, x[::2] and ::
section 3.1.4.1.5 of the book
身份证{cn_id:11010519491231002X}，{cn_id:440308199901010012}
ID {cn_id:110105 19491231 002X} and {cn_id:11010519491231002x}.
证号:{cn_id:110101199003072316}
110105194912310021 has a wrong check digit, 110105194913310025 a wrong month
110105199002301234 is the 30th of February
20240101123456789012 is longer
OPENAI_API_KEY={key:sk-abcdefghijklmnop1234567890ABCDEF}
"{key:isk_a1b2c3d4_0123456789abcdefghijABCDEFGHIJ}" opens it
{key:ghp_16C7e42F292c6912E7710c838347Ae178B4a} {key:AKIAIOSFODNN7EXAMPLE} {key:xoxb-2345678901-abcdefABCDEF}
{key:AIzaSyA1234567890abcdefghijklmnopqrstuv}
{key:eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U}
Authorization: Bearer {key:mF_9.B5f-4.1JqM9xY7zQ2}
curl -H "Authorization: Basic {key:QWxhZGRpbjpvcGVuIHNlc2FtZTE=}"
password: {key:hunter2}, passwd={key:S0mmer-2024}
"password": "{key:tr0ub4dor&3}"
密码：{key:abc12345}
api key is {key:a1B2c3D4e5F6g7H8i9J0}
aws_secret_access_key = {key:wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY1}
postgres://user:{key:s3cret}@localhost/db
client_secret='{key:0f1e2d3c4b5a69788796a5b4c3d2e1f0}'
risk-management-framework-overview and sk-learn-contrib-packages-here
max_tokens: 4096, tokenizer=bert-base-uncased, token: str
password: required, the password is wrong, secret santa
token = tokenizer.eos_token, api_key=os.environ, key=value
eyJ is how JSON begins in base64
-----BEGIN CERTIFICATE----- has no secrets
token: https://example.com/docs/how2-get-a-token
http://example.com:8080/path@2
The quick brown fox jumps over the lazy dog.
Loss fell from 4.9421 to 3.3187 nats after 1.2e9 tokens (seed 17, lr 3e-4).
def f(x: int = 10) -> list[int]: return [x, 2, 3]
| model | 537 | 305 | 143 |
模型的训练需要 2048 个样本，损失为 3.14。
{"user":"{email:bob@corp.io}","ip":"{ip:10.1.2.3}"}
({phone:+1) 415-555-2671}
{phone:+1.415.555.2671} / {phone:+91 98765 43210} / {phone:+91-9876543210}
{phone:+7 (495) 123-45-67}, {phone:+55 11 91234-5678}
{phone:+61 412 345 678} {phone:+34 612 345 678}
{phone:+39 06 1234 5678} Tel.: {phone:0043 1 12345678}
WhatsApp: {phone:+52 55 1234 5678}
Mobile: {phone:8 (495) 123-45-67}
{phone:0412 345 678} or {phone:(02) 9374 4000}
{phone:(0)30 1234567}
{phone:06-12345678} bellen
Tél. : {phone:01.23.45.67.89}
Cell - {phone:415 555 2671}
IBAN:{iban:DE89370400440532013000}
{iban:IT60 X054 2811 1010 0000 0123 456}, {iban:SA03 8000 0000 6080 1016 7519}
{iban:TR33 0006 1005 1978 6457 8413 26}
PASSWORD={key:Sommer2024!} pwd:{key:abc123!}
{key:hf_abcdefghijABCDEFGHIJ0123456789abcd}
"token": "{key:0123456789abcdef0123456789abcdef}"
X-API-Key: {key:0123456789abcdef0123456789abcdef}
my password is {key:hunter22}
{key:sk-proj-abcDEF123_abcDEF123-abcDEF123}
{card:4111-1111-1111-1111}|{card:5105105105105100}|{card:6011111111111117}
Visa {card:4012888888881881} or MC {card:5555 5555 5555 4444}
Call {phone:1-800-356-9377} now
from={email:no-reply@mail.corp-x.io} to=<{email:a@b.co}>
x-forwarded-for: {ip:198.51.100.23}, {ip:10.0.0.1}
{ip:2a02:26f0:dc::b81e:8a9} connected
2024-03-15T12:30:45+0100 and +08:00, UTC+8 13:00
2024-03-15 12:30:45.123456 pid 12345 tid 140245678901234
+40.7128, -74.0060 and 0x7ffde4a31b20
GPU 00000000:3B:00.0 at 0000:3b:00.0
e3b0c442 98fc1c14 9afbf4c8 996fb924
e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
lr=3e-4, batch=64, tokens=1234567890, params=27000000
epoch 1/10: 100%|####| 1000/1000 [00:10<00:00, 99.50it/s]
ratio 16:9, time 10:20, verse 3:16-18, 1:2:3:4
EAN 4006381333931, ISBN 9783161484100, ISBN 0-306-40615-2
case 02-1234-CV, room 030-12, A4 210 x 297
10.1038/s41586-020-2649-2 and arXiv:2203.15556
$1,234.56 and 1.234.567,89 EUR, 123 456 789 people
1 415 nights; 2 000 000 000 users; 12 34 56 78 90
tel aviv 2024 100 000 people
call 1000000 times f(1234567)
mobile phones 2020 2021 2022
secret = random.randint(0, 100)
assert token == "hello_world_2"
the password must have 8 characters
password = getpass.getpass()
password_hash: str, token_count: 1234567890123456
phone: str = None
phone 15 pro 128 gb 2023
2001:db8 and abcd::
C++17, g++-12, +5.5
0800 to 1700 hours, 09 00 - 17 00
SSN-like 078-05-1120
10000000000 10000000001 10000000002
12.5.2.1 is an IP only by form
0300 1234 and 0102030405
FY2023-2024 2024-2025 5551234567 sum
Article 5.1.2.3.4, chapter 1.2
""".strip("\n").split("\n")
