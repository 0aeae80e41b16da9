document.querySelectorAll("th").forEach(th=>th.addEventListener("click",()=>{
const table=th.closest("table"),body=table.tBodies[0],column=th.cellIndex;
const up=th.getAttribute("aria-sort")!=="ascending";
table.querySelectorAll("th").forEach(other=>other.removeAttribute("aria-sort"));
th.setAttribute("aria-sort",up?"ascending":"descending");
const key=row=>row.cells[column].textContent.replace("\u2212","-");
[...body.rows].sort((a,b)=>{const x=key(a),y=key(b),p=parseFloat(x),q=parseFloat(y);
const order=isNaN(p)||isNaN(q)?(isNaN(p)&&isNaN(q)?x.localeCompare(y):isNaN(p)?1:-1):p-q;
return up?order:-order}).forEach(row=>body.append(row))}));
